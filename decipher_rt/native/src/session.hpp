// One opened bundle on one engine, and the stages of a series in order, each timed here and nowhere else.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "dali_graph.hpp"
#include "engine.hpp"
#include "gpu.hpp"
#include "heads.hpp"
#include "histogram.hpp"
#include "voxels.hpp"

namespace decipher {

struct Callbacks {
    drt_log_callback log = nullptr;
    drt_progress_callback progress = nullptr;
    drt_cancel_callback cancel = nullptr;
    void* user_data = nullptr;

    void report(drt_stage stage, double fraction) const;
    void say(drt_log_level level, const std::string& message) const;
    bool cancelled() const { return cancel != nullptr && cancel(user_data) != 0; }
    void stop_if_cancelled(const char* when) const;
};

struct SessionOptions {
    std::string bundle, precision = "fp32", cache_folder, library_folder;
    unsigned threads = 1;
    std::optional<drt_cuda_params> cuda;  // where the encoder runs on a GPU
    std::optional<std::string> heads;     // names with commas between, of those that answer; all where it is not set
    Callbacks callbacks;
};

struct ScopeAnswer {
    bool inside = true;
    std::optional<double> score;
    std::string reason;
};

struct Times {
    double preprocess_ms = 0, encode_ms = 0, heads_ms = 0, total_ms = 0, arrival_ms = 0;
};

struct Result {
    std::vector<float> embedding, patch;
    std::vector<std::int64_t> tokens;
    ScopeAnswer scope;
    std::map<std::string, HeadAnswer> heads;  // only where in scope
    Affine grid_affine;
    Placement source;
    Times times;
};

// What stays the same from opening to closing; the answers to drt_session_describe.
struct Description {
    Manifest manifest;
    std::string manifest_text, bundle_sha256, engine, device, precision;
    unsigned threads = 1;
    double open_ms = 0;
    std::uint64_t host_bytes = 0, device_bytes = 0;
    std::int64_t worker_pid = 0;
};

// In-process work on a bundle. One thread at a time.
class Session {
public:
    explicit Session(const SessionOptions& options);

    const Description& description() const { return description_; }

    // The voxels are contiguous, of form.stored.
    Result run(const SeriesForm& form, const void* voxels);

    // Slices as they arrive; see series.hpp.
    void resample_in_plane(const SeriesForm& form, const GridPlan& plan, const void* pixels, float* resampled);
    // Slices resampled in plane, the window of the stored values: what is left to do.
    Result finish(const SeriesForm& form, const GridPlan& plan, const float* planes, const Histogram& histogram,
                  std::span<const float> stored);

    // Everything that a run or a series of int16 voxels will want, made ready; heads answer whatever the scope says.
    void warm_up();

    GridPlan plan(const SeriesForm& form) const;

    // Throws DRT_ERROR_UNSUPPORTED on the CPU.
    Gpu& gpu() const;

private:
    class Clock;

    std::unique_ptr<DaliGraph> new_graph(std::size_t batch) const;
    void make_grid(const GridPlan& plan, VoxelType type, const Shape& shape, const void* voxels, const Window& window);
    enum class Heads { in_scope, always };
    Result answer(const SeriesForm& form, const GridPlan& plan, const Window& window, Clock& clock, Heads heads = Heads::in_scope);
    ScopeAnswer judge_scope(const SeriesForm& form, const Arrays& features);

    Callbacks callbacks_;
    Description description_;
    Bytes preprocessing_;
    const DaliLibrary* dali_ = nullptr;
    std::int64_t slabs_ = 1;
    std::map<VoxelType, std::unique_ptr<DaliGraph>> grid_graphs_, slice_graphs_;
    std::unique_ptr<DaliGraph> unused_;  // made while opening, taken for the grid of the first type of voxels
    Buffer<float> grid_;
    std::unique_ptr<Gpu> gpu_;  // outlives the encoder, whose memory is the device's
    std::unique_ptr<Engine> engine_;
    std::unique_ptr<Graph> encoder_, scope_;
    std::map<std::string, std::unique_ptr<Graph>> head_graphs_;  // by file: heads may share one
};

}  // namespace decipher
