#include "tokens.hpp"

#include <algorithm>
#include <numeric>

#include "parallel.hpp"

namespace decipher {

namespace {

std::vector<std::int64_t> tissue_counts(std::span<const float> grid, float level, const Preprocessing& spec,
                                        unsigned threads) {
    const auto [grid_depth, grid_height, grid_width] = spec.grid_shape;
    const auto [depth, height, width] = spec.patch_shape;
    const auto [patch_rows_d, patch_rows_h, patch_columns] = spec.patch_grid();
    std::vector<std::int64_t> counts(static_cast<std::size_t>(spec.patches()));
    parallel_for(static_cast<std::size_t>(patch_rows_d), threads, [&, depth = depth, height = height, width = width,
                                                                   grid_height = grid_height, grid_width = grid_width,
                                                                   rows_h = patch_rows_h, columns = patch_columns](std::size_t d) {
        for (std::int64_t z = 0; z < depth; ++z)
            for (std::int64_t y = 0; y < grid_height; ++y) {
                const std::int64_t plane = static_cast<std::int64_t>(d) * depth + z;
                const float* row = grid.data() + (plane * grid_height + y) * grid_width;
                std::int64_t* patch = counts.data() + (static_cast<std::int64_t>(d) * rows_h + y / height) * columns;
                for (std::int64_t column = 0; column < columns; ++column) {
                    std::int64_t tissue = 0;
                    for (std::int64_t x = 0; x < width; ++x) tissue += row[column * width + x] > level;
                    patch[column] += tissue;
                }
            }
    });
    return counts;
}

}  // namespace

std::vector<std::int64_t> select_tokens(std::span<const float> grid, std::array<float, 2> window,
                                        const Preprocessing& spec, unsigned threads) {
    // In single precision, operation by operation, as numpy does it: a voxel on the border must fall on the same side.
    const float level = window[0] + static_cast<float>(spec.tissue_level) * (window[1] - window[0]);
    const std::vector<std::int64_t> counts = tissue_counts(grid, level, spec, threads);
    const auto [depth, height, width] = spec.patch_shape;
    const double least = spec.min_tissue * static_cast<double>(depth * height * width);
    const auto kept = std::count_if(counts.begin(), counts.end(), [&](std::int64_t n) { return static_cast<double>(n) >= least; });
    const auto bucket = std::lower_bound(spec.token_buckets.begin(), spec.token_buckets.end(), kept);
    std::vector<std::int64_t> order(counts.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return counts[static_cast<std::size_t>(a)] > counts[static_cast<std::size_t>(b)];
    });
    order.resize(static_cast<std::size_t>(*bucket));
    std::sort(order.begin(), order.end());
    return order;
}

}  // namespace decipher
