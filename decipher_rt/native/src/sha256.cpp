#include "sha256.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace decipher {

namespace sha256_detail {

namespace {

// FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
alignas(16) constexpr std::array<std::uint32_t, 64> round_constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// 5.3.3: the first 32 bits of the fractional parts of the square roots of the first eight primes.
constexpr State initial_state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

std::uint32_t big_endian(const std::uint8_t* p) {
    return std::uint32_t{p[0]} << 24 | std::uint32_t{p[1]} << 16 | std::uint32_t{p[2]} << 8 | p[3];
}

#if defined(__x86_64__)

bool cpu_has_sha() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool sha = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & (1u << 29)) != 0;
    const bool sse41 = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1u << 19)) != 0 && (c & (1u << 9)) != 0;
    return sha && sse41;
}

// The instructions keep the eight words of the state as (A B E F) and (C D G H) and do two rounds each.
__attribute__((target("sha,sse4.1,ssse3"))) void compress_sha_ni(State& state, const std::uint8_t* blocks,
                                                                  std::size_t count) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    const __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state.data()));
    const __m128i hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state.data() + 4));
    const __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; count > 0; --count, blocks += block_bytes) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (int i = 0; i < 16; ++i) {  // four rounds each
            if (i < 4) {
                w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks) + i), swap);
            } else {  // 6.2.2, step 1: four words of the schedule
                const __m128i last = w[(i + 3) % 4], before = w[(i + 2) % 4];
                __m128i next = _mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]);
                next = _mm_add_epi32(next, _mm_alignr_epi8(last, before, 4));
                w[i % 4] = _mm_sha256msg2_epu32(next, last);
            }
            const auto* constants = reinterpret_cast<const __m128i*>(round_constants.data()) + i;
            const __m128i sum = _mm_add_epi32(w[i % 4], _mm_load_si128(constants));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state.data()), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state.data() + 4), _mm_alignr_epi8(dchg, feba, 8));
}

#endif

}  // namespace

void compress_portable(State& state, const std::uint8_t* blocks, std::size_t count) {
    const auto rotate = [](std::uint32_t x, int n) { return std::rotr(x, n); };
    for (; count > 0; --count, blocks += block_bytes) {
        std::array<std::uint32_t, 64> w;
        for (std::size_t t = 0; t < 16; ++t) w[t] = big_endian(blocks + 4 * t);
        for (std::size_t t = 16; t < 64; ++t) {
            const std::uint32_t s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ (w[t - 15] >> 3);
            const std::uint32_t s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ (w[t - 2] >> 10);
            w[t] = w[t - 16] + s0 + w[t - 7] + s1;
        }
        auto [a, b, c, d, e, f, g, h] = state;
        for (std::size_t t = 0; t < 64; ++t) {
            const std::uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
            const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + round_constants[t] + w[t];
            const std::uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
            const std::uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

Compress fastest() {
#if defined(__x86_64__)
    static const Compress found = cpu_has_sha() ? compress_sha_ni : compress_portable;
    return found;
#else
    return compress_portable;
#endif
}

}  // namespace sha256_detail

Sha256::Sha256(sha256_detail::Compress compress) : compress_(compress), state_(sha256_detail::initial_state) {}

void Sha256::update(std::span<const std::byte> part) {
    using sha256_detail::block_bytes;
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(part.data());
    std::size_t left = part.size();
    if (left == 0) return;
    const auto waiting = static_cast<std::size_t>(bytes_ % block_bytes);
    bytes_ += left;
    if (waiting > 0) {
        const std::size_t taken = std::min(left, block_bytes - waiting);
        std::memcpy(rest_.data() + waiting, bytes, taken);
        bytes += taken, left -= taken;
        if (waiting + taken < block_bytes) return;
        compress_(state_, rest_.data(), 1);
    }
    const std::size_t whole = left / block_bytes;
    compress_(state_, bytes, whole);
    if (left % block_bytes > 0) std::memcpy(rest_.data(), bytes + whole * block_bytes, left % block_bytes);
}

Digest Sha256::finish() {
    using sha256_detail::block_bytes;
    // 5.1.1: a one bit, zeros, and the length in bits.
    std::array<std::uint8_t, 2 * block_bytes> tail{};
    const auto waiting = static_cast<std::size_t>(bytes_ % block_bytes);
    std::memcpy(tail.data(), rest_.data(), waiting);
    tail[waiting] = 0x80;
    const std::size_t blocks = waiting < block_bytes - 8 ? 1 : 2;
    const std::uint64_t bits = bytes_ * 8;
    for (std::size_t i = 0; i < 8; ++i) tail[blocks * block_bytes - 1 - i] = static_cast<std::uint8_t>(bits >> (8 * i));
    compress_(state_, tail.data(), blocks);
    Digest result;
    for (std::size_t i = 0; i < result.size(); ++i)
        result[i] = static_cast<std::uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
    return result;
}

Digest sha256(std::span<const std::byte> data, sha256_detail::Compress compress) {
    Sha256 sum(compress);
    sum.update(data);
    return sum.finish();
}

std::string hexadecimal(const Digest& digest) {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const std::uint8_t byte : digest) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

}  // namespace decipher
