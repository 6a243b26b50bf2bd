#include "histogram.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "error.hpp"

namespace decipher {

namespace {

constexpr std::uint32_t exponent_bits = 0x7f800000;
constexpr std::uint32_t sign_bit = 0x80000000;

// Order-preserving: a < b as floats exactly when key(a) < key(b); -0 sorts below 0.
std::uint32_t key(std::uint32_t bits) { return (bits & sign_bit) != 0 ? ~bits : bits | sign_bit; }

// MR volumes are full of long runs of one value: two tables in turn keep the additions from waiting for each other.
template <class Value, class Bin>
void count_in(std::vector<std::uint32_t>& counts, const void* voxels, std::size_t number, Bin&& bin) {
    const auto* values = static_cast<const Value*>(voxels);
    const std::size_t half = counts.size() / 2;
    std::uint32_t* even = counts.data();
    std::uint32_t* odd = counts.data() + half;
    std::size_t i = 0;
    for (; i + 1 < number; i += 2) {
        ++even[bin(values[i])];
        ++odd[bin(values[i + 1])];
    }
    if (i < number) ++even[bin(values[i])];
}

constexpr std::size_t bins_of(VoxelType type) { return type == VoxelType::uint8 ? 1u << 8 : 1u << 16; }

}  // namespace

Histogram::Histogram(VoxelType type) : type_(type), counts_(2 * bins_of(type)) {}

void Histogram::count(const void* voxels, std::size_t number) {
    switch (type_) {
        case VoxelType::uint8:
            return count_in<std::uint8_t>(counts_, voxels, number, [](std::uint8_t v) { return v; });
        case VoxelType::uint16:
            return count_in<std::uint16_t>(counts_, voxels, number, [](std::uint16_t v) { return v; });
        case VoxelType::int16:
            return count_in<std::uint16_t>(counts_, voxels, number, [](std::uint16_t v) { return v ^ 0x8000u; });
        case VoxelType::float32: {
            const auto* values = static_cast<const std::uint32_t*>(voxels);
            // Before anything is counted: a slice that is refused may come again.
            const auto bad = std::count_if(values, values + number, [](std::uint32_t bits) {
                return (bits & exponent_bits) == exponent_bits;
            });
            if (bad > 0)
                throw series_error(std::to_string(bad) + " of " + std::to_string(number) +
                                   " voxels are not finite (NaN or infinity): write the background value in their place");
            return count_in<std::uint32_t>(counts_, voxels, number, [](std::uint32_t bits) { return key(bits) >> 16; });
        }
    }
}

void Histogram::merge(const Histogram& other) {
    std::transform(counts_.begin(), counts_.end(), other.counts_.begin(), counts_.begin(), std::plus<>());
}

Window Histogram::percentiles(std::array<double, 2> q, std::span<const float> voxels) const {
    std::uint64_t total = 0;
    for (const std::uint32_t count : counts_) total += count;
    Window window;
    for (std::size_t i = 0; i < 2; ++i) {
        const double rank = std::max(std::ceil(q[i] / 100.0 * static_cast<double>(total)), 1.0);
        window[i] = value_at(static_cast<std::uint64_t>(rank), voxels);
    }
    return window;
}

double Histogram::value_at(std::uint64_t rank, std::span<const float> voxels) const {
    const std::size_t bins = counts_.size() / 2;
    std::size_t bin = 0;
    std::uint64_t below = 0;
    for (; bin + 1 < bins; ++bin) {
        const std::uint64_t here = std::uint64_t{counts_[bin]} + counts_[bins + bin];
        if (below + here >= rank) break;
        below += here;
    }
    if (type_ == VoxelType::int16) return static_cast<double>(bin) - 0x8000;
    if (type_ != VoxelType::float32) return static_cast<double>(bin);
    std::vector<float> candidates;
    candidates.reserve(std::size_t{counts_[bin]} + counts_[bins + bin]);
    for (const float value : voxels)
        if (key(std::bit_cast<std::uint32_t>(value)) >> 16 == bin) candidates.push_back(value);
    const auto nth = candidates.begin() + static_cast<std::ptrdiff_t>(rank - below - 1);
    std::nth_element(candidates.begin(), nth, candidates.end());
    return *nth;
}

}  // namespace decipher
