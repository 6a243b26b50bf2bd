// Exact percentiles of stored values, counted slice by slice while they arrive.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "voxels.hpp"

namespace decipher {

using Window = std::array<double, 2>;

// Counts every value of 8- and 16-bit integers. Of float32 it counts the upper 16 bits of an order-preserving key; the
// few values that share a bin with a percentile are looked at once all are there.
class Histogram {
public:
    explicit Histogram(VoxelType type);

    // Voxels of the type of the constructor, contiguous. Throws a series error on NaN and infinity.
    void count(const void* voxels, std::size_t number);
    void merge(const Histogram& other);

    // Two percentiles (0 to 100) as numpy.percentile's "inverted_cdf" defines them. `voxels` is every voxel counted, in
    // any order; it is read for float32 only.
    Window percentiles(std::array<double, 2> q, std::span<const float> voxels) const;

private:
    double value_at(std::uint64_t rank, std::span<const float> voxels) const;

    VoxelType type_;
    std::vector<std::uint32_t> counts_;
};

}  // namespace decipher
