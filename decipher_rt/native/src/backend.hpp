// What stands behind a drt_session: the work in this process, or in a worker process.
#pragma once

#include <memory>
#include <vector>

#include "session.hpp"

namespace decipher {

// A caller's volume; strides in bytes.
struct VolumeView {
    const std::byte* voxels;
    std::array<std::int64_t, 3> strides;

    SliceView slice(std::int64_t index) const { return {voxels + index * strides[0], strides[1], strides[2]}; }
};

class Arrival {
public:
    Arrival() = default;
    virtual ~Arrival() = default;
    Arrival(const Arrival&) = delete;
    Arrival& operator=(const Arrival&) = delete;

    virtual void push(const SliceView& slice, const Vector& position_lps_mm) = 0;
    virtual std::vector<std::int64_t> missing() const = 0;
    virtual Result finish() = 0;
};

class Backend {
public:
    Backend() = default;
    virtual ~Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;

    virtual const Description& description() const = 0;
    virtual Result run(const SeriesForm& form, const VolumeView& volume) = 0;
    virtual std::unique_ptr<Arrival> begin(const SeriesForm& form) = 0;
    virtual void warm_up() = 0;

    // Where the session is on a GPU; throws DRT_ERROR_UNSUPPORTED elsewhere.
    virtual Gpu& gpu() const = 0;
};

std::unique_ptr<Backend> make_in_process(const SessionOptions& options);

}  // namespace decipher
