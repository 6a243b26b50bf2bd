// Where the grid lies in the volume: from affine, shape and spec to the arguments of the DALI graph. The same rules as
// decipher_rt/preprocess/grid.py, which says why they are so.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "geometry.hpp"
#include "manifest.hpp"

namespace decipher {

using Shape = std::array<std::int64_t, 3>;

// Positions along an acquired axis of n voxels run from edge to edge: 0 is the outer edge of the first voxel, n that of
// the last.
struct GridPlan {
    Shape size{};                     // resampled voxels along each acquired axis, at most the grid's
    std::array<double, 3> start{};    // the stretch of each acquired axis that becomes these voxels;
    std::array<double, 3> end{};      // start > end flips the axis
    std::array<int, 3> permutation{}; // grid axis i is the acquired axis permutation[i]
    Shape padding{};                  // grid voxels before the first resampled one, along each grid axis
    Affine affine;                    // of the grid: maps its index to LPS mm
};

GridPlan plan_grid(const Affine& affine, const Shape& shape, const Preprocessing& spec);

// Arguments of one sample of the graph.
struct GraphArguments {
    std::array<float, 3> size, roi_start, roi_end;
    std::int32_t permutation;
    std::array<std::int32_t, 3> anchor, shape;
    float low;
};

// The whole grid, cut along its first axis into `slabs` samples; `low` is the value of padding.
std::vector<GraphArguments> grid_arguments(const GridPlan& plan, const Shape& grid_shape, std::int64_t slabs, double low);

// One slice resampled in plane, nothing else: a sample of shape (1, plan.size[1], plan.size[2]).
GraphArguments slice_arguments(const GridPlan& plan);

// What is left of the plan once every slice has been resampled in plane.
GridPlan after_in_plane(const GridPlan& plan);

}  // namespace decipher
