#include "geometry.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "error.hpp"

namespace decipher {

namespace {

// Rows are Superior, Anterior and Right in LPS coordinates: the grid's axes.
constexpr Matrix sar_in_lps = {{{0, 0, 1}, {0, -1, 0}, {-1, 0, 0}}};
// Sums of cosines closer than this are a tie; ties are broken in the patient, never by storage order.
constexpr double tie_cosine = 1e-6;
// Axes whose determinant (relative to the product of the spacings) is below this do not span space.
constexpr double singular_determinant = 1e-3;
constexpr int newton_steps = 60;
constexpr double newton_converged = 1e-15;

double determinant(const Matrix& m) {
    return m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
           m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}

Matrix inverse_transpose(const Matrix& m) {
    const double scale = 1 / determinant(m);
    Matrix result;
    for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t j = 0; j < 3; ++j) {  // cofactors
            const std::size_t i1 = (i + 1) % 3, i2 = (i + 2) % 3, j1 = (j + 1) % 3, j2 = (j + 2) % 3;
            result[i][j] = scale * (m[i1][j1] * m[i2][j2] - m[i1][j2] * m[i2][j1]);
        }
    return result;
}

// The orthogonal factor of the polar decomposition, which is the nearest orthonormal frame, by Newton's iteration
// (Higham, SIAM J. Sci. Stat. Comput. 7, 1986): the same as U V^T of the SVD.
Matrix nearest_orthonormal(Matrix m) {
    for (int step = 0; step < newton_steps; ++step) {
        const Matrix other = inverse_transpose(m);
        double change = 0;
        for (std::size_t i = 0; i < 3; ++i)
            for (std::size_t j = 0; j < 3; ++j) {
                const double next = (m[i][j] + other[i][j]) / 2;
                change = std::max(change, std::abs(next - m[i][j]));
                m[i][j] = next;
            }
        if (change < newton_converged) break;
    }
    return m;
}

Matrix unit_axes(const Affine& affine) {
    bool finite = true, length = true;
    for (const auto& row : affine.rows)
        for (const double value : row) finite = finite && std::isfinite(value);
    Matrix axes;
    for (std::size_t j = 0; j < 3; ++j) {
        const double spacing = affine.spacing(j);
        length = length && spacing > 0;
        for (std::size_t i = 0; i < 3; ++i) axes[i][j] = affine.rows[i][j] / spacing;
    }
    if (!finite || !length)
        throw series_error("the affine is not finite or has an axis of no length: the orientation cannot be told");
    if (std::abs(determinant(axes)) < singular_determinant)
        throw series_error("the axes of the affine lie in one plane: the orientation cannot be told");
    return axes;
}

}  // namespace

double dot(const Vector& a, const Vector& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

double norm(const Vector& a) { return std::sqrt(dot(a, a)); }

double Affine::spacing(std::size_t i) const { return norm(axis(i)); }

AxisOrder axis_order(const Affine& affine) {
    const Matrix frame = nearest_orthonormal(unit_axes(affine));
    Matrix cosines{};  // row: S, A, R; column: d, h, w
    for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t j = 0; j < 3; ++j)
            for (std::size_t k = 0; k < 3; ++k) cosines[i][j] += sar_in_lps[i][k] * frame[k][j];

    using Key = std::array<double, 10>;
    std::tuple<Key, std::array<int, 3>, std::array<bool, 3>> best;
    bool first = true;
    std::array<int, 3> permutation = {0, 1, 2};
    do {
        // The columns are the candidate's axes seen from the patient, whatever order they are stored in.
        Matrix oriented;
        std::array<bool, 3> flips;
        for (std::size_t j = 0; j < 3; ++j) {
            const auto from = static_cast<std::size_t>(permutation[j]);
            flips[j] = cosines[j][from] < 0;
            for (std::size_t i = 0; i < 3; ++i) oriented[i][j] = flips[j] ? -cosines[i][from] : cosines[i][from];
        }
        Key key;  // rounded whatever the host's rounding mode is
        key[0] = std::round((oriented[0][0] + oriented[1][1] + oriented[2][2]) / tie_cosine);
        for (std::size_t j = 0; j < 3; ++j)
            for (std::size_t i = 0; i < 3; ++i) key[1 + 3 * j + i] = std::round(oriented[i][j] / tie_cosine);
        const auto candidate = std::tuple(key, permutation, flips);
        if (first || candidate > best) best = candidate;
        first = false;
    } while (std::next_permutation(permutation.begin(), permutation.end()));
    return {std::get<1>(best), std::get<2>(best)};
}

}  // namespace decipher
