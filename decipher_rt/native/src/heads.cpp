#include "heads.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "error.hpp"

namespace decipher {

namespace {

constexpr double score_rounding = 1e-5;     // a probability may end so far beyond 0 or 1
constexpr double cubic_mm_per_ml = 1000;
constexpr double parallel_voxels = 0.1;     // by which two axes may part over a whole volume and still count as parallel
constexpr double midway = 1e-6;             // of a voxel: see decipher_rt/label_map.py
constexpr std::size_t box_values = 7;       // score, centre and size

[[noreturn]] void refuse(const Head& head, const std::string& found) {
    throw bundle_error("head " + head.name + " gives " + found + "; export the bundle again");
}

Placement map_placement(const Head& head, const Preprocessing& spec, const Affine& grid) {
    Placement map;
    map.affine = grid;
    for (std::size_t axis = 0; axis < 3; ++axis) map.shape[axis] = spec.grid_shape[axis] / head.stride;
    for (std::size_t row = 0; row < 3; ++row) {
        const auto& from = grid.rows[row];
        map.affine.rows[row][3] = from[3] + static_cast<double>(head.stride - 1) / 2 * (from[0] + from[1] + from[2]);
        for (std::size_t axis = 0; axis < 3; ++axis) map.affine.rows[row][axis] = from[axis] * static_cast<double>(head.stride);
    }
    return map;
}

Vector cross(const Vector& a, const Vector& b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

double determinant(const Affine& affine) { return dot(affine.axis(0), cross(affine.axis(1), affine.axis(2))); }

// Where the planes of an axis of one volume lie along the axis of another that it runs along.
struct Planes {
    std::size_t along;
    double first, step;

    std::int64_t nearest(std::int64_t plane) const {
        return static_cast<std::int64_t>(std::floor(first + step * static_cast<double>(plane) + 0.5 + midway));
    }
};

std::array<Planes, 3> planes_of(const Placement& volume, const Affine& other) {
    const double scale = 1 / determinant(other);
    std::array<Vector, 3> inverse = {cross(other.axis(1), other.axis(2)), cross(other.axis(2), other.axis(0)),
                                     cross(other.axis(0), other.axis(1))};
    for (Vector& row : inverse)
        for (double& value : row) value *= scale;
    const Vector from = volume.affine.origin(), to = other.origin();
    const Vector shift = {from[0] - to[0], from[1] - to[1], from[2] - to[2]};
    std::array<Planes, 3> found{};
    std::array<bool, 3> taken{};
    for (std::size_t axis = 0; axis < 3; ++axis) {
        const Vector direction = volume.affine.axis(axis);
        const Vector column = {dot(inverse[0], direction), dot(inverse[1], direction), dot(inverse[2], direction)};
        std::size_t along = 0;
        for (std::size_t i = 1; i < 3; ++i)
            if (std::abs(column[i]) > std::abs(column[along])) along = i;
        bool parallel = !std::exchange(taken[along], true);
        for (std::size_t i = 0; i < 3; ++i)
            parallel = parallel && (i == along || std::abs(column[i]) * static_cast<double>(volume.shape[axis]) <= parallel_voxels);
        if (!parallel) throw series_error("the label map and the volume have axes that are not parallel: it cannot be laid over it");
        found[axis] = {along, dot(inverse[along], shift), column[along]};
    }
    return found;
}

void expect(const Head& head, const char* what, const std::vector<std::size_t>& shape, const std::vector<std::size_t>& expected) {
    if (shape != expected) refuse(head, what + (" of shape " + shape_text(shape)) + ", expected " + shape_text(expected));
}

HeadAnswer segmentation(const Head& head, const Output& output, const Preprocessing& spec, const Affine& grid,
                        const Placement& source) {
    const Placement map = map_placement(head, spec, grid);
    const auto [D, H, W] = map.shape;
    expect(head, "a label map", output.shape, {1, static_cast<std::size_t>(D), static_cast<std::size_t>(H), static_cast<std::size_t>(W)});
    if (output.labels.empty()) refuse(head, "a label map of floats, expected bytes");
    HeadAnswer answer;
    answer.labels.resize(output.labels.size());
    answer.values.assign(head.labels.size(), 0);
    // What lies outside the source counts in no volume, and is background.
    const std::array<Planes, 3> planes = planes_of(map, source.affine);
    std::array<std::vector<bool>, 3> inside;
    for (std::size_t axis = 0; axis < 3; ++axis)
        for (std::int64_t plane = 0; plane < map.shape[axis]; ++plane) {
            const std::int64_t nearest = planes[axis].nearest(plane);
            inside[axis].push_back(nearest >= 0 && nearest < source.shape[planes[axis].along]);
        }
    std::vector<std::int64_t> counts(head.labels.size());
    std::size_t i = 0;
    for (std::int64_t d = 0; d < D; ++d)
        for (std::int64_t h = 0; h < H; ++h)
            for (std::int64_t w = 0; w < W; ++w, ++i) {
                const std::uint8_t label = output.labels[i];
                if (label >= head.labels.size())
                    refuse(head, "a label beyond the " + std::to_string(head.labels.size()) + " that the manifest names");
                if (!inside[0][static_cast<std::size_t>(d)] || !inside[1][static_cast<std::size_t>(h)] ||
                    !inside[2][static_cast<std::size_t>(w)])
                    continue;
                answer.labels[i] = label;
                ++counts[label];
            }
    const double voxel_ml = std::abs(determinant(map.affine)) / cubic_mm_per_ml;
    for (std::size_t label = 1; label < counts.size(); ++label)
        answer.values[label] = static_cast<float>(static_cast<double>(counts[label]) * voxel_ml);
    return answer;
}

HeadAnswer localisation(const Head& head, const Output& output, const Affine& grid) {
    const std::size_t boxes = output.shape.size() == 3 ? output.shape[1] : 0;
    expect(head, "boxes", output.shape, {1, boxes, box_values});
    HeadAnswer answer;
    for (std::size_t first = 0; first < output.values.size(); first += box_values) {
        const float* box = output.values.data() + first;
        if (box[0] < -score_rounding || box[0] > 1 + score_rounding || box[4] < 0 || box[5] < 0 || box[6] < 0)
            return {"the head gave a box with a score outside 0 to 1 or a negative size", {}, {}, {}};
        if (static_cast<double>(box[0]) < head.threshold) continue;
        FoundBox found{box[0], grid.origin(), {}};
        for (std::size_t axis = 0; axis < 3; ++axis) {
            for (std::size_t row = 0; row < 3; ++row) found.center_lps_mm[row] += grid.rows[row][axis] * static_cast<double>(box[1 + axis]);
            found.size_mm[axis] = grid.spacing(axis) * static_cast<double>(box[4 + axis]);
        }
        answer.boxes.push_back(found);
    }
    std::stable_sort(answer.boxes.begin(), answer.boxes.end(), [](const auto& a, const auto& b) { return a.score > b.score; });
    return answer;
}

}  // namespace

const char* head_output(HeadKind kind) {
    switch (kind) {
        case HeadKind::classification: return "probabilities";
        case HeadKind::regression: return "value";
        case HeadKind::segmentation: return "labels_map";
        case HeadKind::localisation: return "boxes";
    }
    return "";
}

HeadAnswer answer_of(const Head& head, const Output& output, const Preprocessing& spec, const Affine& grid, const Placement& source) {
    if (head.kind == HeadKind::segmentation) return segmentation(head, output, spec, grid, source);
    if (!output.labels.empty()) refuse(head, "bytes, expected floats");
    const std::vector<float>& values = output.values;
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }))
        return {"the head's output holds a value that is no finite number", {}, {}, {}};
    if (head.kind == HeadKind::localisation) return localisation(head, output, grid);
    const std::size_t expected = head.kind == HeadKind::regression ? 1 : head.labels.size();
    expect(head, head_output(head.kind), output.shape, {1, expected});
    if (head.kind == HeadKind::regression) return {"", values, {}, {}};
    HeadAnswer answer{"", values, {}, {}};
    for (float& value : answer.values) {
        if (value < -score_rounding || value > 1 + score_rounding) return {"the head gave a probability outside 0 to 1", {}, {}, {}};
        value = std::clamp(value, 0.0F, 1.0F);
    }
    return answer;
}

void labels_on_source(const Head& head, const std::vector<std::uint8_t>& labels, const Preprocessing& spec, const Affine& grid,
                      const Placement& source, std::uint8_t* to) {
    const Placement map = map_placement(head, spec, grid);
    if (labels.size() != static_cast<std::size_t>(map.shape[0] * map.shape[1] * map.shape[2]))  // of a worker gone mad
        refuse(head, "a label map of " + std::to_string(labels.size()) + " voxels");
    const std::array<Planes, 3> planes = planes_of(source, map.affine);
    const std::array<std::int64_t, 3> strides = {map.shape[1] * map.shape[2], map.shape[2], 1};
    // Where each plane of the source lies in the map, or -1.
    std::array<std::vector<std::int64_t>, 3> offsets;
    for (std::size_t axis = 0; axis < 3; ++axis)
        for (std::int64_t plane = 0; plane < source.shape[axis]; ++plane) {
            const std::int64_t nearest = planes[axis].nearest(plane);
            const bool inside = nearest >= 0 && nearest < map.shape[planes[axis].along];
            offsets[axis].push_back(inside ? nearest * strides[planes[axis].along] : -1);
        }
    for (const std::int64_t d : offsets[0])
        for (const std::int64_t h : offsets[1])
            for (const std::int64_t w : offsets[2])
                *to++ = d < 0 || h < 0 || w < 0 ? std::uint8_t{0} : labels[static_cast<std::size_t>(d + h + w)];
}

}  // namespace decipher
