// Where voxels lie in the patient: LPS millimetres (PS3.3 C.7.6.2.1.1), array axes (d, h, w) = (slice, row, column).
#pragma once

#include <array>

namespace decipher {

using Vector = std::array<double, 3>;
using Matrix = std::array<Vector, 3>;  // rows

// What the length of a voxel can be, of a volume's and of the grid's. Far below it DALI 2.4 divides by zero, which ends the
// process (found by fuzzing).
inline constexpr double least_spacing_mm = 1e-3, largest_spacing_mm = 1e3;

struct Affine {
    std::array<std::array<double, 4>, 4> rows{};  // maps (d, h, w, 1) to LPS mm

    Vector axis(std::size_t i) const { return {rows[0][i], rows[1][i], rows[2][i]}; }
    Vector origin() const { return axis(3); }
    double spacing(std::size_t i) const;
};

struct AxisOrder {
    std::array<int, 3> permutation{};  // grid axis i is the acquired axis permutation[i]
    std::array<bool, 3> flips{};       // by grid axis
};

double dot(const Vector& a, const Vector& b);
double norm(const Vector& a);

// The permutation and flips after which the axes run to Superior, Anterior and Right: the one-to-one assignment with the
// largest sum of cosines between the nearest orthonormal frame and S, A, R. It depends on where the axes lie in the
// patient alone. Throws a series error where the affine is not finite or its axes do not span space.
AxisOrder axis_order(const Affine& affine);

}  // namespace decipher
