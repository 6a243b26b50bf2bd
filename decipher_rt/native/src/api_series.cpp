// decipher_rt.h: a series slice by slice.

#include <algorithm>

#include "api.hpp"

using namespace decipher;

namespace {

const drt_series_geometry default_geometry = [] {
    drt_series_geometry geometry{};
    geometry.struct_size = sizeof geometry;
    geometry.type = DRT_INT16;
    for (int i = 0; i < 4; ++i) geometry.affine_lps_mm[5 * i] = 1;
    geometry.slope = 1;
    return geometry;
}();

const drt_slice default_slice = [] {
    drt_slice slice{};
    slice.struct_size = sizeof slice;
    return slice;
}();

}  // namespace

void drt_default_geometry(drt_series_geometry* geometry, size_t struct_size) {
    give_defaults(geometry, struct_size, default_geometry);
}

void drt_default_slice(drt_slice* slice, size_t struct_size) { give_defaults(slice, struct_size, default_slice); }

drt_status drt_series_begin(drt_session* session, const drt_series_geometry* geometry, drt_series** series) {
    if (series != nullptr) *series = nullptr;
    return guarded([&] {
        required(series, "series");
        drt_session& opened = idle(session);
        const drt_series_geometry given = read_struct(geometry, "geometry", default_geometry);
        const SeriesForm form = check_form(given.type, given.shape, given.affine_lps_mm, given.slope, given.intercept,
                                           header_facts(given.modality, given.body_part));
        auto begun = std::make_unique<drt_series>();
        begun->session = session;
        begun->arrival = opened.backend->begin(form);
        begun->pixel_bytes = static_cast<std::int64_t>(bytes_of(form.type));
        begun->columns = form.shape[2];
        *series = begun.release();
    });
}

drt_status drt_series_push(drt_series* series, const drt_slice* slice) {
    return guarded([&] {
        drt_series& begun = required(series, "series");
        if (begun.finished) throw argument_error("the series is finished: begin another");
        idle(begun.session);
        const drt_slice given = read_struct(slice, "slice", default_slice);
        if (given.pixels == nullptr) throw argument_error("slice->pixels is NULL");
        SliceView view{static_cast<const std::byte*>(given.pixels), given.strides[0], given.strides[1]};
        if (view.row_stride == 0 && view.column_stride == 0) {
            view.column_stride = begun.pixel_bytes;
            view.row_stride = begun.pixel_bytes * begun.columns;
        }
        const auto& p = given.position_lps_mm;
        begun.arrival->push(view, {p[0], p[1], p[2]});
    });
}

drt_status drt_series_missing(const drt_series* series, int64_t* indices, size_t capacity, size_t* count) {
    return guarded([&] {
        copy_values(required(series, "series").arrival->missing(), indices, capacity, count, "the list of missing slices");
    });
}

drt_status drt_series_finish(drt_series* series) {
    return guarded([&] {
        drt_series& begun = required(series, "series");
        if (begun.finished) throw argument_error("the series is finished already: read the result from its session");
        drt_session& session = idle(begun.session);
        session.result.reset();
        session.result = begun.arrival->finish();
        begun.finished = true;
    });
}

void drt_series_free(drt_series* series) {
    guarded([&] { delete series; });
}
