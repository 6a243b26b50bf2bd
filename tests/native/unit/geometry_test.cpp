#include "geometry.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "check.hpp"
#include "error.hpp"
#include "grid_plan.hpp"

using namespace decipher;

namespace {

// Directions of Superior, Anterior, Right in LPS.
constexpr Matrix sar = {{{0, 0, 1}, {0, -1, 0}, {-1, 0, 0}}};

// An affine whose axis `permutation[i]` runs along S, A or R (or against it), turned by a few degrees about S.
Affine oriented(const std::array<int, 3>& permutation, const std::array<bool, 3>& flips, const Vector& spacing, double degrees) {
    const double c = std::cos(degrees / 57.29577951308232), s = std::sin(degrees / 57.29577951308232);
    Affine affine;
    for (std::size_t grid = 0; grid < 3; ++grid) {
        const auto column = static_cast<std::size_t>(permutation[grid]);
        const Vector& v = sar[grid];
        const Vector turned = {c * v[0] - s * v[1], s * v[0] + c * v[1], v[2]};
        for (std::size_t i = 0; i < 3; ++i) affine.rows[i][column] = (flips[grid] ? -1 : 1) * spacing[column] * turned[i];
    }
    affine.rows[3] = {0, 0, 0, 1};
    return affine;
}

void every_order_is_found() {
    std::array<int, 3> permutation = {0, 1, 2};
    do
        for (unsigned bits = 0; bits < 8; ++bits) {
            const std::array<bool, 3> flips = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
            for (const double degrees : {0.0, 17.0, -44.0}) {
                const AxisOrder order = axis_order(oriented(permutation, flips, {3, 0.5, 1.25}, degrees));
                CHECK(order.permutation == permutation);
                CHECK(order.flips == flips);
            }
        }
    while (std::next_permutation(permutation.begin(), permutation.end()));
}

void at_45_degrees_storage_order_does_not_matter() {
    // The same volume stored with rows and columns exchanged: each axis must get the same place in the patient.
    const AxisOrder one = axis_order(oriented({0, 1, 2}, {}, {1, 1, 1}, 45));
    const AxisOrder other = axis_order(oriented({0, 2, 1}, {}, {1, 1, 1}, 45));
    CHECK(one.permutation[0] == 0 && other.permutation[0] == 0);
    CHECK(one.permutation[1] == 3 - other.permutation[1]);
}

void bad_affines_are_refused() {
    Affine flat = oriented({0, 1, 2}, {}, {1, 1, 1}, 0);
    for (auto& row : flat.rows) row[2] = row[1];
    CHECK_ERROR(axis_order(flat), DRT_ERROR_SERIES);
    Affine nothing{};
    CHECK_ERROR(axis_order(nothing), DRT_ERROR_SERIES);
    Affine not_finite = oriented({0, 1, 2}, {}, {1, 1, 1}, 0);
    not_finite.rows[0][3] = std::nan("");
    CHECK_ERROR(axis_order(not_finite), DRT_ERROR_SERIES);
}

void grid_is_centred_on_the_field_of_view() {
    Preprocessing spec;
    spec.grid_shape = {96, 80, 64};
    spec.spacing_mm = {2.5, 2, 3};
    spec.patch_shape = {16, 16, 16};
    std::array<int, 3> permutation = {2, 0, 1};
    const Shape shape = {40, 256, 200};
    const Affine affine = oriented(permutation, {true, false, true}, {4, 0.7, 0.9}, 11);
    const GridPlan plan = plan_grid(affine, shape, spec);
    const auto at = [](const Affine& map, double d, double h, double w) {
        Vector point;
        for (std::size_t i = 0; i < 3; ++i) point[i] = map.rows[i][0] * d + map.rows[i][1] * h + map.rows[i][2] * w + map.rows[i][3];
        return point;
    };
    const Vector centre = at(affine, 19.5, 127.5, 99.5);
    const auto middle = [&](std::size_t axis) {
        const auto acquired = static_cast<std::size_t>(plan.permutation[axis]);
        return static_cast<double>(plan.padding[axis]) + (static_cast<double>(plan.size[acquired]) - 1) / 2;
    };
    const Vector grid_centre = at(plan.affine, middle(0), middle(1), middle(2));
    for (std::size_t axis = 0; axis < 3; ++axis) {
        CHECK(std::abs(centre[axis] - grid_centre[axis]) < 1e-9);
        CHECK(std::abs(plan.affine.spacing(axis) - spec.spacing_mm[axis]) < 1e-9);
    }
    // Slabs cover the grid once, in order.
    const auto samples = grid_arguments(plan, spec.grid_shape, 4, 5);
    std::int64_t depth = 0;
    for (const GraphArguments& sample : samples) {
        depth += sample.shape[0];
        CHECK(sample.low == 5);
        CHECK(sample.size[0] >= 1 && sample.size[1] >= 1 && sample.size[2] >= 1);
    }
    CHECK(depth == spec.grid_shape[0]);
}

void sizes_too_far_apart_are_refused() {
    const auto plan = [](double spacing_mm, double voxel_mm, std::int64_t voxels) {
        Preprocessing spec;
        spec.grid_shape = {96, 96, 96};
        spec.spacing_mm = {spacing_mm, spacing_mm, spacing_mm};
        return plan_grid(oriented({0, 1, 2}, {}, {voxel_mm, voxel_mm, voxel_mm}, 0), {voxels, voxels, voxels}, spec);
    };
    CHECK(plan(500, 0.1, 8).size[0] == 1 && plan(0.01, 1, 4096).size[0] == 96);
    const std::string large = CHECK_ERROR(plan(1000, 0.05, 8), DRT_ERROR_SERIES);
    CHECK(large.find("8 voxels of 0.05 mm and a grid of 1000 mm: too far apart") == 0);
    CHECK_ERROR(plan(0.001, 1, 4096), DRT_ERROR_SERIES);
}

}  // namespace

int main() {
    every_order_is_found();
    at_45_degrees_storage_order_does_not_matter();
    bad_affines_are_refused();
    grid_is_centred_on_the_field_of_view();
    sizes_too_far_apart_are_refused();
}
