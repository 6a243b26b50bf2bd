// Values in and out of a row of bytes. Both ends are of one build (see worker_protocol.cpp); the reader still trusts nothing:
// the other process may have died in the middle, or worse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "error.hpp"

namespace decipher {

class ByteWriter {
public:
    template <class Value>
        requires std::is_trivially_copyable_v<Value>
    void put(const Value& value) {
        const auto* bytes = reinterpret_cast<const std::byte*>(&value);
        bytes_.insert(bytes_.end(), bytes, bytes + sizeof value);
    }
    template <class Value>
        requires std::is_trivially_copyable_v<Value>
    void put(const std::vector<Value>& values) {
        put(std::uint64_t{values.size()});
        const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
        bytes_.insert(bytes_.end(), bytes, bytes + values.size() * sizeof(Value));
    }
    void put(const std::string& text) { put(std::vector<char>(text.begin(), text.end())); }

    const std::vector<std::byte>& bytes() const { return bytes_; }

private:
    std::vector<std::byte> bytes_;
};

class ByteReader {
public:
    explicit ByteReader(std::span<const std::byte> bytes) : rest_(bytes) {}

    template <class Value>
        requires std::is_trivially_copyable_v<Value>
    Value get() {
        Value value;
        std::memcpy(&value, take(sizeof value).data(), sizeof value);
        return value;
    }
    bool get_bool() { return get<std::uint8_t>() != 0; }
    template <class Value>
    std::vector<Value> get_list() {
        const auto count = get<std::uint64_t>();
        if (count > rest_.size() / sizeof(Value)) throw short_message();
        std::vector<Value> values(static_cast<std::size_t>(count));
        const auto bytes = take(values.size() * sizeof(Value));
        if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
        return values;
    }
    std::string get_text() {
        const auto characters = get_list<char>();
        return {characters.begin(), characters.end()};
    }

private:
    static Error short_message() { return {DRT_ERROR_WORKER_LOST, "the worker process sent a message that ends early; open a new session"}; }
    std::span<const std::byte> take(std::size_t count) {
        if (count > rest_.size()) throw short_message();
        const auto taken = rest_.first(count);
        rest_ = rest_.subspan(count);
        return taken;
    }

    std::span<const std::byte> rest_;
};

}  // namespace decipher
