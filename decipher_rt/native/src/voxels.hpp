// Voxels as a caller describes them, and as the DALI graph takes them: contiguous uint8, uint16, int16 or float32.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "decipher_rt.h"
#include "geometry.hpp"

namespace decipher {

enum class VoxelType { uint8, uint16, int16, float32 };

std::size_t bytes_of(VoxelType type);
std::size_t bytes_of(drt_voxel_type type);

struct Rescale {
    double slope = 1, intercept = 0;
};

// What the graph will take for a type that a caller has: the same, or int16 for int8, or float32, already rescaled, for
// everything wider and where the slope is not positive.
VoxelType graph_type(drt_voxel_type type, Rescale rescale);

// What the header says of the series; what it does not say is not judged.
struct HeaderFacts {
    std::optional<std::string> modality, body_part;
};

// NULL and what is empty or blank say nothing.
HeaderFacts header_facts(const char* modality, const char* body_part);

// Geometry and type, checked: sizes positive and together less than 2^48 bytes, affine and rescale finite.
struct SeriesForm {
    drt_voxel_type type;
    VoxelType stored;
    std::array<std::int64_t, 3> shape;
    Affine affine;
    Rescale rescale;
    HeaderFacts header;

    std::size_t slice_voxels() const { return static_cast<std::size_t>(shape[1] * shape[2]); }
    std::size_t voxels() const { return static_cast<std::size_t>(shape[0]) * slice_voxels(); }
};

SeriesForm check_form(drt_voxel_type type, const std::int64_t (&shape)[3], const double (&affine)[16], double slope,
                      double intercept, HeaderFacts header);

// Rows of a caller's slice, converted into contiguous ones. Strides in bytes.
struct SliceView {
    const std::byte* pixels;
    std::int64_t row_stride, column_stride;
};

void convert_slice(const SeriesForm& form, const SliceView& from, std::byte* to);

// Whether the caller's slice can be used as it lies.
bool usable_in_place(const SeriesForm& form, const SliceView& slice);

}  // namespace decipher
