// SHA-256 (FIPS 180-4). With the CPU's SHA instructions where it has them: a bundle is hashed each time it is opened.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace decipher {

using Digest = std::array<std::uint8_t, 32>;

Digest sha256(std::span<const std::byte> data);

// As 64 lower-case hexadecimal digits.
std::string hexadecimal(const Digest& digest);

namespace sha256_detail {

using State = std::array<std::uint32_t, 8>;
using Compress = void (*)(State& state, const std::uint8_t* blocks, std::size_t count);

// For tests: every implementation must give the same digests.
void compress_portable(State& state, const std::uint8_t* blocks, std::size_t count);
Compress fastest();
Digest digest(std::span<const std::byte> data, Compress compress);

}  // namespace sha256_detail

}  // namespace decipher
