#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace decipher {

// Whether the text is well-formed UTF-8 (Unicode 15, table 3-7).
inline bool is_utf8(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const auto lead = static_cast<std::uint8_t>(text[i]);
        const std::size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
        if (length == 0 || i + length > text.size()) return false;
        for (std::size_t k = 1; k < length; ++k) {
            const auto next = static_cast<std::uint8_t>(text[i + k]);
            std::uint8_t low = 0x80, high = 0xbf;
            if (k == 1 && lead == 0xe0) low = 0xa0;
            if (k == 1 && lead == 0xed) high = 0x9f;
            if (k == 1 && lead == 0xf0) low = 0x90;
            if (k == 1 && lead == 0xf4) high = 0x8f;
            if (next < low || next > high) return false;
        }
        i += length;
    }
    return true;
}

}  // namespace decipher
