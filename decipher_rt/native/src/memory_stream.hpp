#pragma once

#include <istream>
#include <span>
#include <streambuf>

namespace decipher {

// Bytes in memory as a stream buffer, without a copy.
class MemoryBuffer : public std::streambuf {
public:
    explicit MemoryBuffer(std::span<const std::byte> bytes) {
        char* begin = const_cast<char*>(reinterpret_cast<const char*>(bytes.data()));  // only ever read
        setg(begin, begin, begin + bytes.size());
    }

private:
    pos_type seekoff(off_type offset, std::ios_base::seekdir from, std::ios_base::openmode mode) override {
        const char* base = from == std::ios_base::beg ? eback() : from == std::ios_base::cur ? gptr() : egptr();
        return seekpos(base - eback() + offset, mode);
    }

    pos_type seekpos(pos_type position, std::ios_base::openmode) override {
        if (position < 0 || position > egptr() - eback()) return pos_type(off_type(-1));
        setg(eback(), eback() + static_cast<std::ptrdiff_t>(position), egptr());
        return position;
    }
};

}  // namespace decipher
