#include "npz.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>

#include "error.hpp"

namespace decipher {

namespace {

using Span = std::span<const std::byte>;

// Signatures and offsets of APPNOTE.TXT 6.3.9, sections 4.3.7, 4.3.12 and 4.3.16.
constexpr std::uint32_t local_signature = 0x04034b50, central_signature = 0x02014b50, end_signature = 0x06054b50;
constexpr std::size_t local_size = 30, central_size = 46, end_size = 22, longest_comment = 0xffff;
constexpr std::uint32_t in_zip64 = 0xffffffff;
constexpr std::string_view npy_magic = "\x93NUMPY";
constexpr std::size_t largest_rank = 8;

class Archive {
public:
    Archive(const std::string& file, Span bytes) : file_(file), bytes_(bytes) {}

    std::map<std::string, NpyArray> arrays() const {
        std::map<std::string, NpyArray> result;
        const std::size_t end = find_end();
        std::size_t at = number<std::uint32_t>(end + 16);
        for (auto entries = number<std::uint16_t>(end + 10); entries > 0; --entries) {
            if (number<std::uint32_t>(at) != central_signature) throw damaged();
            const auto method = number<std::uint16_t>(at + 10);
            const auto packed = number<std::uint32_t>(at + 20), size = number<std::uint32_t>(at + 24), local = number<std::uint32_t>(at + 42);
            const auto name_size = number<std::uint16_t>(at + 28);
            const std::size_t others = std::size_t{number<std::uint16_t>(at + 30)} + number<std::uint16_t>(at + 32);
            if (method != 0 || packed != size || size == in_zip64 || local == in_zip64)
                throw bundle_error(file_ + ": holds compressed or huge arrays; write it with numpy.savez");
            std::string name = text(part(at + central_size, name_size));
            if (name.size() < 4 || name.substr(name.size() - 4) != ".npy") throw damaged();
            name.resize(name.size() - 4);
            if (number<std::uint32_t>(local) != local_signature) throw damaged();
            const std::size_t data = local + local_size + number<std::uint16_t>(local + 26) + number<std::uint16_t>(local + 28);
            result[name] = array(part(data, size));
            at += central_size + name_size + others;
        }
        return result;
    }

private:
    Error damaged() const { return bundle_error(file_ + " is no .npz archive; export the bundle again"); }

    Span part(std::size_t offset, std::size_t size) const {
        if (offset > bytes_.size() || size > bytes_.size() - offset) throw damaged();
        return bytes_.subspan(offset, size);
    }
    template <class Number>
    Number number(std::size_t offset) const {
        Number value;
        std::memcpy(&value, part(offset, sizeof value).data(), sizeof value);
        return value;  // zip and every machine that we build for are little endian
    }
    static std::string text(Span bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

    std::size_t find_end() const {
        if (bytes_.size() < end_size) throw damaged();
        const std::size_t last = bytes_.size() - end_size, first = last - std::min(last, longest_comment);
        for (std::size_t at = last + 1; at-- > first;)
            if (number<std::uint32_t>(at) == end_signature) return at;
        throw damaged();
    }

    // https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    NpyArray array(Span npy) const {
        const Archive inner(file_, npy);
        if (text(inner.part(0, npy_magic.size())) != npy_magic) throw damaged();
        const bool first_version = inner.number<std::uint8_t>(6) == 1;
        const std::size_t start = first_version ? 10 : 12;
        const std::size_t size = first_version ? inner.number<std::uint16_t>(8) : inner.number<std::uint32_t>(8);
        const std::string header = text(inner.part(start, size));
        NpyArray result{value_of(header, "'descr': '", "'"), {}, {}};
        if (value_of(header, "'fortran_order': ", ",") != "False") throw damaged();
        std::size_t bytes = result.type.size() == 3 && result.type[0] == '<' ? static_cast<std::size_t>(result.type[2] - '0') : 0;
        if (bytes < 1 || bytes > 8) throw bundle_error(file_ + ": holds an array of type " + result.type);
        const std::string shape = value_of(header, "'shape': (", ")");
        for (const char *at = shape.data(), *end = at + shape.size(); at < end;) {
            std::int64_t length = 0;
            const auto [next, error] = std::from_chars(at, end, length);
            if (error != std::errc() || length < 0 || result.shape.size() == largest_rank) throw damaged();
            if (length != 0 && bytes > npy.size() / static_cast<std::size_t>(length)) throw damaged();
            bytes *= static_cast<std::size_t>(length);
            result.shape.push_back(length);
            for (at = next; at < end && (*at == ',' || *at == ' ');) ++at;
        }
        result.data = inner.part(start + size, bytes);
        return result;
    }

    std::string value_of(const std::string& header, std::string_view before, std::string_view after) const {
        const std::size_t found = header.find(before);
        if (found == header.npos) throw damaged();
        const std::size_t begin = found + before.size(), end = header.find(after, begin);
        if (end == header.npos) throw damaged();
        return header.substr(begin, end - begin);
    }

    const std::string& file_;
    Span bytes_;
};

}  // namespace

std::map<std::string, NpyArray> read_npz(const std::string& file, std::span<const std::byte> bytes) {
    return Archive(file, bytes).arrays();
}

}  // namespace decipher
