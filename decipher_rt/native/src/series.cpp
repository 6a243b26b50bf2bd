#include "series.hpp"

#include <array>
#include <charconv>
#include <chrono>
#include <cmath>

#include "elapsed.hpp"
#include "error.hpp"

namespace decipher {

namespace {

// How far a slice may lie from its place: along the stack in slice spacings (as the reader of series has it), and
// sideways in millimetres.
constexpr double spacing_tolerance = 0.03;
constexpr double sideways_tolerance_mm = 0.01;

std::string millimetres(const Vector& position) {
    std::string text;
    for (const double value : position) {
        std::array<char, 400> digits;
        const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, std::chars_format::fixed, 2).ptr;
        text += (text.empty() ? "(" : ", ") + std::string(digits.data(), end);
    }
    return text + ") mm";
}

}  // namespace

Series::Series(Session& session, const SeriesForm& form)
    : session_(session), form_(form), plan_(session.plan(form)), histogram_(form.stored),
      arrived_(static_cast<std::size_t>(form.shape[0])),
      planes_(static_cast<std::size_t>(form.shape[0] * plan_.size[1] * plan_.size[2])),
      slice_((form.stored == VoxelType::float32 ? form.voxels() : form.slice_voxels()) * bytes_of(form.stored)) {}

std::int64_t Series::index_of(const Vector& position) const {
    const Vector step = form_.affine.axis(0), origin = form_.affine.origin();
    const Vector offset = {position[0] - origin[0], position[1] - origin[1], position[2] - origin[2]};
    const double place = dot(offset, step) / dot(step, step), nearest = std::round(place);
    const Vector sideways = {offset[0] - place * step[0], offset[1] - place * step[1], offset[2] - place * step[2]};
    // Written so that NaN is refused too.
    if (!(std::abs(place - nearest) <= spacing_tolerance) || !(norm(sideways) <= sideways_tolerance_mm + spacing_tolerance * norm(step)))
        throw series_error("the slice at " + millimetres(position) +
                           " lies on none of the series' slices: check the affine and Image Position (Patient)");
    if (nearest < 0 || nearest >= static_cast<double>(form_.shape[0]))
        throw series_error("the slice at " + millimetres(position) + " lies outside the " +
                           std::to_string(form_.shape[0]) + " slices that were announced");
    return static_cast<std::int64_t>(nearest);
}

void Series::push(const SliceView& slice, const Vector& position_lps_mm) {
    const auto start = std::chrono::steady_clock::now();
    const auto index = static_cast<std::size_t>(index_of(position_lps_mm));
    if (arrived_[index])
        throw series_error("the slice at " + millimetres(position_lps_mm) + " (number " + std::to_string(index) + ") has already come");
    const bool keep = form_.stored == VoxelType::float32;
    const std::byte* pixels = slice.pixels;
    if (keep || !usable_in_place(form_, slice)) {
        std::byte* place = slice_.data() + (keep ? index * form_.slice_voxels() * bytes_of(form_.stored) : 0);
        convert_slice(form_, slice, place);
        pixels = place;
    }
    session_.resample_in_plane(form_, plan_, pixels, planes_.data() + index * static_cast<std::size_t>(plan_.size[1] * plan_.size[2]));
    try {
        histogram_.count(pixels, form_.slice_voxels());
    } catch (const Error& error) {
        throw series_error("the slice at " + millimetres(position_lps_mm) + ": " + error.what());
    }
    arrived_[index] = true;
    arrival_ms_ += milliseconds_since(start);
}

std::vector<std::int64_t> Series::missing() const {
    std::vector<std::int64_t> indices;
    for (std::size_t i = 0; i < arrived_.size(); ++i)
        if (!arrived_[i]) indices.push_back(static_cast<std::int64_t>(i));
    return indices;
}

Result Series::finish() {
    const std::vector<std::int64_t> absent = missing();
    if (!absent.empty()) {
        const Vector step = form_.affine.axis(0), origin = form_.affine.origin();
        const auto first = static_cast<double>(absent.front());
        const Vector place = {origin[0] + first * step[0], origin[1] + first * step[1], origin[2] + first * step[2]};
        throw series_error(std::to_string(absent.size()) + " of " + std::to_string(arrived_.size()) +
                           " slices have not come, the first of them at " + millimetres(place));
    }
    std::span<const float> stored;
    if (form_.stored == VoxelType::float32)
        stored = {reinterpret_cast<const float*>(slice_.data()), form_.voxels()};
    Result result = session_.finish(form_, plan_, planes_.data(), histogram_, stored);
    result.times.arrival_ms = arrival_ms_;
    return result;
}

}  // namespace decipher
