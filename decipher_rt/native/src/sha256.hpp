// SHA-256 (FIPS 180-4). With the CPU's SHA instructions where it has them: a bundle is hashed each time it is opened.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace decipher {

using Digest = std::array<std::uint8_t, 32>;

namespace sha256_detail {

using State = std::array<std::uint32_t, 8>;
using Compress = void (*)(State& state, const std::uint8_t* blocks, std::size_t count);

constexpr std::size_t block_bytes = 64;

// For tests: every implementation must give the same digests.
void compress_portable(State& state, const std::uint8_t* blocks, std::size_t count);
Compress fastest();

}  // namespace sha256_detail

// The digest of data that comes in parts.
class Sha256 {
public:
    explicit Sha256(sha256_detail::Compress compress = sha256_detail::fastest());

    void update(std::span<const std::byte> part);
    Digest finish();  // once, after the last part

private:
    sha256_detail::Compress compress_;
    sha256_detail::State state_;
    std::array<std::uint8_t, sha256_detail::block_bytes> rest_{};  // a block that is not full yet
    std::uint64_t bytes_ = 0;
};

Digest sha256(std::span<const std::byte> data, sha256_detail::Compress compress = sha256_detail::fastest());

// As 64 lower-case hexadecimal digits.
std::string hexadecimal(const Digest& digest);

}  // namespace decipher
