#include "voxels.hpp"

#include <cmath>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "error.hpp"

namespace decipher {

namespace {

constexpr std::int64_t largest_axis = std::int64_t{1} << 16;
constexpr std::int64_t largest_volume = std::int64_t{1} << 32;  // voxels

// Whether float32 stays as it is: what a positive slope and an intercept do to all voxels alike changes no answer, unless the
// values span too little.
bool kept(const SeriesForm& form) { return form.type == DRT_FLOAT32 && form.rescale.slope > 0; }

template <class From, class To>
void convert_rows(const SeriesForm& form, const SliceView& from, std::byte* to) {
    const auto [slope, intercept] = form.rescale;
    const bool rescaled = std::is_same_v<To, float> && !kept(form);
    for (std::int64_t row = 0; row < form.shape[1]; ++row) {
        const std::byte* source = from.pixels + row * from.row_stride;
        if (!rescaled && sizeof(From) == sizeof(To) && from.column_stride == sizeof(From)) {
            std::memcpy(to, source, static_cast<std::size_t>(form.shape[2]) * sizeof(To));
            to += static_cast<std::size_t>(form.shape[2]) * sizeof(To);
            continue;
        }
        for (std::int64_t column = 0; column < form.shape[2]; ++column, source += from.column_stride) {
            From value;  // a caller's strides need not keep it aligned
            std::memcpy(&value, source, sizeof value);
            To converted;
            if (rescaled)
                converted = static_cast<To>(static_cast<double>(value) * slope + intercept);
            else
                converted = static_cast<To>(value);
            std::memcpy(to, &converted, sizeof converted);
            to += sizeof converted;
        }
    }
}

template <class From>
void convert_from(const SeriesForm& form, const SliceView& from, std::byte* to) {
    switch (form.stored) {
        case VoxelType::uint8: return convert_rows<From, std::uint8_t>(form, from, to);
        case VoxelType::uint16: return convert_rows<From, std::uint16_t>(form, from, to);
        case VoxelType::int16: return convert_rows<From, std::int16_t>(form, from, to);
        case VoxelType::float32: return convert_rows<From, float>(form, from, to);
    }
}

// Blanks around a Code String do not count: DICOM pads it to an even length (PS3.5 6.2).
std::optional<std::string> text_of_header(const char* value) {
    const std::string_view text = value != nullptr ? value : "";
    const std::size_t first = text.find_first_not_of(' ');
    if (first == text.npos) return std::nullopt;
    return std::string(text.substr(first, text.find_last_not_of(' ') - first + 1));
}

}  // namespace

std::size_t bytes_of(VoxelType type) {
    switch (type) {
        case VoxelType::uint8: return 1;
        case VoxelType::uint16:
        case VoxelType::int16: return 2;
        case VoxelType::float32: break;
    }
    return 4;
}

std::size_t bytes_of(drt_voxel_type type) {
    switch (type) {
        case DRT_UINT8:
        case DRT_INT8: return 1;
        case DRT_UINT16:
        case DRT_INT16: return 2;
        case DRT_UINT32:
        case DRT_INT32:
        case DRT_FLOAT32: return 4;
        case DRT_FLOAT64: break;
    }
    return 8;
}

VoxelType graph_type(drt_voxel_type type, Rescale rescale) {
    if (!(rescale.slope > 0)) return VoxelType::float32;
    switch (type) {
        case DRT_UINT8: return VoxelType::uint8;
        case DRT_UINT16: return VoxelType::uint16;
        case DRT_INT8:
        case DRT_INT16: return VoxelType::int16;
        default: return VoxelType::float32;
    }
}

HeaderFacts header_facts(const char* modality, const char* body_part) {
    return {text_of_header(modality), text_of_header(body_part)};
}

SeriesForm check_form(drt_voxel_type type, const std::int64_t (&shape)[3], const double (&affine)[16], double slope,
                      double intercept, HeaderFacts header) {
    if (type < DRT_UINT8 || type > DRT_FLOAT64)
        throw argument_error("voxel type " + std::to_string(type) + " is none of drt_voxel_type");
    SeriesForm form{type, graph_type(type, {slope, intercept}), {}, {}, {slope, intercept}, std::move(header)};
    std::int64_t voxels = 1;
    for (std::size_t i = 0; i < 3; ++i) {
        if (shape[i] < 1 || shape[i] > largest_axis)
            throw series_error("the volume has shape (" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) +
                               ", " + std::to_string(shape[2]) + "): expected slices, rows and columns, 1 to " +
                               std::to_string(largest_axis) + " each");
        voxels *= shape[i];
        form.shape[i] = shape[i];
    }
    if (voxels >= largest_volume) throw series_error("the volume has 2^32 voxels or more");
    if (!std::isfinite(slope) || !std::isfinite(intercept) || slope == 0)
        throw series_error("slope and intercept must be finite and the slope not 0");
    for (std::size_t i = 0; i < 16; ++i) form.affine.rows[i / 4][i % 4] = affine[i];
    const auto& last = form.affine.rows[3];
    if (last != std::array<double, 4>{0, 0, 0, 1})
        throw series_error("the last row of the affine must be 0 0 0 1: it is row-major and maps (d, h, w, 1) to LPS mm");
    axis_order(form.affine);  // refuses what is no geometry
    for (std::size_t axis = 0; axis < 3; ++axis) {
        const double spacing = form.affine.spacing(axis);
        if (!(spacing >= least_spacing_mm && spacing <= largest_spacing_mm))
            throw series_error("voxels of " + general(spacing) + " mm: expected " + general(least_spacing_mm) + " to " +
                               general(largest_spacing_mm) + " mm along each axis; is the affine in millimetres?");
    }
    return form;
}

bool usable_in_place(const SeriesForm& form, const SliceView& slice) {
    const auto size = static_cast<std::int64_t>(bytes_of(form.type));
    const bool same = (form.type == DRT_UINT8 && form.stored == VoxelType::uint8) ||
                      (form.type == DRT_UINT16 && form.stored == VoxelType::uint16) ||
                      (form.type == DRT_INT16 && form.stored == VoxelType::int16) ||
                      kept(form);
    return same && slice.column_stride == size && slice.row_stride == size * form.shape[2] &&
           reinterpret_cast<std::uintptr_t>(slice.pixels) % static_cast<std::uintptr_t>(size) == 0;
}

void convert_slice(const SeriesForm& form, const SliceView& from, std::byte* to) {
    switch (form.type) {
        case DRT_UINT8: return convert_from<std::uint8_t>(form, from, to);
        case DRT_INT8: return convert_from<std::int8_t>(form, from, to);
        case DRT_UINT16: return convert_from<std::uint16_t>(form, from, to);
        case DRT_INT16: return convert_from<std::int16_t>(form, from, to);
        case DRT_UINT32: return convert_from<std::uint32_t>(form, from, to);
        case DRT_INT32: return convert_from<std::int32_t>(form, from, to);
        case DRT_FLOAT32: return convert_from<float>(form, from, to);
        case DRT_FLOAT64: return convert_from<double>(form, from, to);
    }
}

}  // namespace decipher
