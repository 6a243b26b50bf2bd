// A series that arrives slice by slice: whatever can be done for one slice is done when it comes.
#pragma once

#include <vector>

#include "session.hpp"

namespace decipher {

class Series {
public:
    Series(Session& session, const SeriesForm& form);

    // Strides in bytes.
    void push(const SliceView& slice, const Vector& position_lps_mm);
    std::vector<std::int64_t> missing() const;
    Result finish();

private:
    std::int64_t index_of(const Vector& position_lps_mm) const;

    Session& session_;
    SeriesForm form_;
    GridPlan plan_;
    Histogram histogram_;
    std::vector<bool> arrived_;
    Buffer<float> planes_;  // (slices, plan.size[1], plan.size[2])
    Bytes slice_;           // one, contiguous; for float32 all of them, whose percentiles need every voxel
    double arrival_ms_ = 0;
};

}  // namespace decipher
