#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace decipher {

// The wire format of protocol buffers, as much as it takes to walk messages by field number. What reads them afterwards keeps
// 32 bits of a key and 31 of a size: one with more would be another field there than here, and is damage.
class Fields {
public:
    explicit Fields(std::span<const std::byte> bytes) : rest_(bytes) {}

    // Whether the walk ended before the bytes did: they are no message.
    bool damaged() const { return damaged_; }

    struct Field {
        std::uint64_t number, value;
        std::span<const std::byte> message;
    };

    std::optional<Field> next() {
        if (rest_.empty() || damaged_) return std::nullopt;
        auto field = read();
        damaged_ = !field;
        return field;
    }

private:
    static constexpr std::uint64_t largest_key = (std::uint64_t{1} << 32) - 1, largest_size = (std::uint64_t{1} << 31) - 1;

    std::optional<Field> read() {
        const auto tag = varint();
        if (!tag || *tag > largest_key || *tag >> 3 == 0) return std::nullopt;
        Field field{*tag >> 3, 0, {}};
        std::optional<std::uint64_t> size;
        switch (*tag & 7) {
            case 0: {
                const auto value = varint();
                if (!value) return std::nullopt;
                field.value = *value;
                return field;
            }
            case 1: size = 8; break;
            case 2: size = varint(); break;
            case 5: size = 4; break;
            default: return std::nullopt;
        }
        if (!size || *size > rest_.size() || *size > largest_size) return std::nullopt;
        field.message = rest_.first(static_cast<std::size_t>(*size));
        rest_ = rest_.subspan(static_cast<std::size_t>(*size));
        return field;
    }

    std::optional<std::uint64_t> varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
            const auto byte = std::to_integer<std::uint64_t>(rest_.front());
            rest_ = rest_.subspan(1);
            value |= (byte & 0x7f) << shift;
            if ((byte & 0x80) == 0) return value;
        }
        rest_ = {};
        return std::nullopt;
    }

    std::span<const std::byte> rest_;
    bool damaged_ = false;
};

}  // namespace decipher
