#include "grid_plan.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "error.hpp"

namespace decipher {

namespace {

// An odd number of 1 mm slices on a 2 mm grid is a tie; noise of the affine must not decide it. In grid voxels.
constexpr double tie_voxels = 1e-3;
// How large a voxel of the grid can be, in acquired ones, and how small, as part of their axis.
constexpr double largest_step = 1e4, least_part = 1e-6;

// The graph branches on the place of the permutation among all six, in lexicographic order.
std::int32_t case_of(const std::array<int, 3>& permutation) {
    return permutation[0] * 2 + (permutation[1] > permutation[2] ? 1 : 0);
}

std::array<float, 3> to_float(const std::array<double, 3>& values) {
    return {static_cast<float>(values[0]), static_cast<float>(values[1]), static_cast<float>(values[2])};
}

std::array<double, 3> to_double(const Shape& values) {
    return {static_cast<double>(values[0]), static_cast<double>(values[1]), static_cast<double>(values[2])};
}

}  // namespace

GridPlan plan_grid(const Affine& affine, const Shape& shape, const Preprocessing& spec) {
    const AxisOrder order = axis_order(affine);
    GridPlan plan;
    plan.permutation = order.permutation;
    std::array<std::array<double, 4>, 4> index_of_grid{};  // grid index to acquired index
    index_of_grid[3][3] = 1;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        const auto acquired = static_cast<std::size_t>(order.permutation[axis]);
        const auto length = static_cast<double>(shape[acquired]);
        double step = spec.spacing_mm[axis] / affine.spacing(acquired);  // one grid voxel in acquired voxels
        if (!(step >= least_part * length && step <= largest_step))
            throw series_error(std::to_string(shape[acquired]) + " voxels of " + general(affine.spacing(acquired)) +
                               " mm and a grid of " + general(spec.spacing_mm[axis]) +
                               " mm: too far apart to be resampled; is the affine in millimetres?");
        // The grid bounds it before it becomes an integer: a huge quotient must not overflow.
        const double fitting = std::clamp(std::floor(length / step + 0.5 + tie_voxels), 1.0,
                                          static_cast<double>(spec.grid_shape[axis]));
        const auto count = static_cast<std::int64_t>(fitting);
        double first = length / 2 - fitting * step / 2, last = length / 2 + fitting * step / 2;
        if (order.flips[axis]) {
            std::swap(first, last);
            step = -step;
        }
        plan.size[acquired] = count;
        plan.start[acquired] = first;
        plan.end[acquired] = last;
        plan.padding[axis] = (spec.grid_shape[axis] - count) / 2;
        index_of_grid[acquired][axis] = step;
        index_of_grid[acquired][3] = first + (0.5 - static_cast<double>(plan.padding[axis])) * step - 0.5;
    }
    for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t j = 0; j < 4; ++j)
            for (std::size_t k = 0; k < 4; ++k) plan.affine.rows[i][j] += affine.rows[i][k] * index_of_grid[k][j];
    return plan;
}

std::vector<GraphArguments> grid_arguments(const GridPlan& plan, const Shape& grid_shape, std::int64_t slabs,
                                           double low) {
    const std::int64_t depth = grid_shape[0] / slabs;
    const auto split = static_cast<std::size_t>(plan.permutation[0]);  // the acquired axis that the slabs divide
    const std::int64_t count = plan.size[split];
    const double step = (plan.end[split] - plan.start[split]) / static_cast<double>(count);
    std::vector<GraphArguments> arguments;
    for (std::int64_t slab = 0; slab < slabs; ++slab) {
        const std::int64_t begin = depth * slab - plan.padding[0];  // in resampled voxels
        // A slab of nothing but padding still resizes one voxel: DALI takes a size of 0 for "not given".
        const std::int64_t first = std::clamp<std::int64_t>(begin, 0, count - 1);
        const std::int64_t last = std::clamp<std::int64_t>(begin + depth, first + 1, count);
        std::array<double, 3> size = to_double(plan.size), start = plan.start, end = plan.end;
        size[split] = static_cast<double>(last - first);
        start[split] = plan.start[split] + static_cast<double>(first) * step;
        end[split] = plan.start[split] + static_cast<double>(last) * step;
        GraphArguments sample{to_float(size), to_float(start), to_float(end), case_of(plan.permutation), {}, {},
                              static_cast<float>(low)};
        for (std::size_t axis = 0; axis < 3; ++axis) {
            sample.anchor[axis] = static_cast<std::int32_t>(-plan.padding[axis]);
            sample.shape[axis] = static_cast<std::int32_t>(grid_shape[axis]);
        }
        sample.anchor[0] = static_cast<std::int32_t>(begin - first);
        sample.shape[0] = static_cast<std::int32_t>(depth);
        arguments.push_back(sample);
    }
    return arguments;
}

GraphArguments slice_arguments(const GridPlan& plan) {
    const auto height = static_cast<std::int32_t>(plan.size[1]), width = static_cast<std::int32_t>(plan.size[2]);
    GraphArguments sample{};
    sample.size = {1, static_cast<float>(height), static_cast<float>(width)};
    sample.roi_start = to_float({0, plan.start[1], plan.start[2]});
    sample.roi_end = to_float({1, plan.end[1], plan.end[2]});
    sample.shape = {1, height, width};
    return sample;
}

GridPlan after_in_plane(const GridPlan& plan) {
    GridPlan rest = plan;
    for (std::size_t axis = 1; axis < 3; ++axis) {
        rest.start[axis] = 0;
        rest.end[axis] = static_cast<double>(plan.size[axis]);
    }
    return rest;
}

}  // namespace decipher
