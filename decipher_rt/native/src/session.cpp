#include "session.hpp"

#include <algorithm>
#include <cmath>
#include <array>
#include <atomic>
#include <chrono>
#include <future>
#include <numeric>
#include <set>

#include "blocked_signals.hpp"
#include "cpu_features.hpp"
#include "error.hpp"
#include "graph_operators.hpp"
#include "parallel.hpp"
#include "tokens.hpp"

namespace decipher {

namespace {

// The same on every machine: where a grid is cut decides how its last bits round. See decipher_rt/preprocess/run.py.
constexpr std::int64_t most_slabs = 4;
constexpr double unit_tolerance = 1e-2;  // of the length of an embedding, which is said to be one
// A volume for warming up: large enough to be cut into every slab, small enough to cost little beside the encoder.
constexpr std::int64_t warm_up_voxels = 32;

// Reads from the bundle only what no earlier session left a compiled graph of.
std::unique_ptr<Graph> load_graph(Engine& engine, const Bundle& bundle, const std::string& file, unsigned threads) {
    const std::string& sum = bundle.sums.at(file);
    if (auto kept = engine.load_kept(file, sum, threads)) return kept;
    return engine.load(file, sum, bundle.content(file), threads);
}

// A graph that is to be loaded: what it may ask for, what it must give, and where it belongs.
struct Wanted {
    std::string file;
    std::vector<std::string> inputs, outputs;
    unsigned threads;
    std::unique_ptr<Graph>* place;
};

const std::string& preprocessing_file(const Manifest& manifest) {
    const auto graph = manifest.preprocessing.graphs.find("cpu");
    if (graph == manifest.preprocessing.graphs.end())
        throw bundle_error("bundle " + manifest.name + ": no preprocessing graph for the CPU; export it again");
    return graph->second;
}

Histogram count_slices(const SeriesForm& form, const void* voxels, unsigned threads) {
    std::vector<Histogram> parts(std::min<std::size_t>(threads, static_cast<std::size_t>(form.shape[0])), Histogram(form.stored));
    const std::size_t total = form.voxels();
    parallel_for(parts.size(), threads, [&](std::size_t i) {
        const std::size_t begin = total * i / parts.size(), end = total * (i + 1) / parts.size();
        parts[i].count(static_cast<const std::byte*>(voxels) + begin * bytes_of(form.stored), end - begin);
    });
    for (std::size_t i = 1; i < parts.size(); ++i) parts[0].merge(parts[i]);
    return std::move(parts[0]);
}

constexpr double narrowest_window = 1e-6;  // the encoder divides by no less

Window window_of(const Histogram& histogram, const Preprocessing& spec, std::span<const float> stored) {
    const Window window = histogram.percentiles(spec.window_percentiles, stored);
    if (!(window[0] < window[1]))
        throw series_error("the volume has no contrast: its " + general(spec.window_percentiles[0], 6) + " and " +
                           general(spec.window_percentiles[1], 6) + " percentiles are both " + general(window[0], 6) +
                           "; give an image series, not a mask or an empty one");
    if (window[1] - window[0] < narrowest_window)
        throw series_error("the volume's values span " + general(window[1] - window[0], 3) + ", less than " +
                           general(narrowest_window, 6) +
                           ": give them in a smaller unit (an ADC map in um2/s instead of m2/s), not by their slope");
    return window;
}

// Refuse a graph that does not keep the contract of its place in the bundle.
std::unique_ptr<Graph> checked(std::unique_ptr<Graph> graph, const std::string& file, const std::vector<std::string>& known_inputs,
                               const std::vector<std::string>& wanted_outputs) {
    const auto holds = [](const std::vector<std::string>& names, const std::string& name) {
        return std::find(names.begin(), names.end(), name) != names.end();
    };
    for (const std::string& name : graph->inputs())
        if (!holds(known_inputs, name))
            throw bundle_error(file + ": takes an input " + name + " that nothing gives; export the bundle again");
    for (const std::string& name : wanted_outputs)
        if (!holds(graph->outputs(), name))
            throw bundle_error(file + ": gives no output " + name + "; export the bundle again");
    return graph;
}

// What a graph gave by a name. An empty array is what OpenVINO gives where it lacks memory; of boxes alone there may be none.
Output given(Outputs& outputs, const std::string& file, const std::string& name, bool may_be_empty = false) {
    const auto found = outputs.find(name);
    if (found == outputs.end()) throw bundle_error(file + ": output " + name + " is neither float32 nor uint8; export the bundle again");
    if (!may_be_empty && found->second.values.empty() && found->second.labels.empty())
        throw Error(DRT_ERROR_MEMORY, file + ": the engine gave an empty " + name + "; it may lack memory");
    return std::move(found->second);
}

std::vector<float> floats(Outputs& encoded, const std::string& name, const std::vector<std::size_t>& expected) {
    Output found = given(encoded, "the encoder", name);
    if (found.shape != expected || found.values.empty())
        throw bundle_error("the encoder gives " + name + " of shape " + shape_text(found.shape) + ", expected " + shape_text(expected) +
                           "; export the bundle again");
    return std::move(found.values);
}

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

}  // namespace

void Callbacks::report(drt_stage stage, double fraction) const {
    if (progress != nullptr) progress(user_data, stage, fraction);
}

void Callbacks::say(drt_log_level level, const std::string& message) const {
    if (log != nullptr) log(user_data, level, message.c_str());
}

void Callbacks::stop_if_cancelled(const char* when) const {
    if (cancelled()) throw Error(DRT_ERROR_CANCELLED, std::string("cancelled ") + when);
}

// Times of consecutive stages: a stage lasts from the end of the one before it, so no time falls between.
class Session::Clock {
public:
    double stage() {
        const auto now = std::chrono::steady_clock::now();
        return milliseconds(now - std::exchange(last_, now));
    }
    double total() const { return milliseconds(std::chrono::steady_clock::now() - start_); }

private:
    static double milliseconds(std::chrono::steady_clock::duration duration) {
        return std::chrono::duration<double, std::milli>(duration).count();
    }
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), last_ = start_;
};

Session::Session(const SessionOptions& options) : callbacks_(options.callbacks) {
    Clock clock;
    callbacks_.report(DRT_OPEN, 0);
    const unsigned threads = description_.threads = options.threads;
    description_.precision = options.precision;
    if (options.cuda) gpu_ = make_gpu(options.library_folder, *options.cuda);
    Bundle bundle = open_bundle(options.bundle);
    callbacks_.stop_if_cancelled("while opening");
    // A segmentation answers for every voxel: its graph is large, also where only others that share it are asked for.
    std::set<std::string> dense;
    for (const Head& head : bundle.manifest.heads)
        if (head.kind == HeadKind::segmentation) dense.insert(head.file);
    if (options.heads) bundle.manifest.keep_heads(*options.heads);
    const Manifest& manifest = bundle.manifest;
    const Preprocessing& spec = manifest.preprocessing;
    if (gpu_)
        for (const std::string& file : gpu_->files(manifest, bundle.sums, options.precision)) bundle.read(file);
    const std::string& graph_file = preprocessing_file(manifest);
    bundle.read(graph_file);
    preprocessing_ = bundle.file(graph_file);
    check_operators(preprocessing_);
    for (std::int64_t n = 1; n <= most_slabs; ++n)
        if (spec.grid_shape[0] % n == 0) slabs_ = n;
    grid_.resize(static_cast<std::size_t>(spec.voxels()));

    const std::vector<std::string> features = {"patch", "tokens", "embedding", "volume", "window"};
    const std::vector<std::string> encoder_inputs = {"volume", "window", "tokens"}, encoder_outputs = {"patch", "embedding"};
    std::vector<Wanted> wanted;
    for (const Head& head : manifest.heads) {
        const auto shared = std::find_if(wanted.begin(), wanted.end(), [&](const Wanted& one) { return one.file == head.file; });
        // What is small keeps no threads, however many heads there are.
        const unsigned share = threads > 1 && dense.contains(head.file) ? threads : Engine::in_caller;
        Wanted& one = shared != wanted.end()
                          ? *shared
                          : wanted.emplace_back(Wanted{head.file, features, {}, share, &head_graphs_[head.file]});
        one.outputs.push_back(head_output(head.kind));
    }
    if (manifest.scope) wanted.push_back({manifest.scope->file, features, {"score"}, Engine::in_caller, &scope_});
    // What takes longest first, then the encoder: both threads then end together.
    const auto small = std::stable_partition(wanted.begin(), wanted.end(), [&](const Wanted& one) { return dense.contains(one.file); });
    const std::string encoder = gpu_ ? "" : onnx_encoder(manifest, options.precision).file;
    if (!gpu_) wanted.insert(small, {encoder, encoder_inputs, encoder_outputs, threads, &encoder_});

    // Where the caller allows a second thread, it loads DALI while this one loads the engine and its first graph; both then
    // share the other graphs, and what is left of the files to check. The loader of libraries serves one thread at a time,
    // and DALI's take it longest, so the engine's go first. A third thread checks files from the start. What was kept of a
    // graph was compiled from a file of the same sum.
    FileCheck files(bundle, encoder);
    std::atomic<bool> stopped{false};
    std::atomic_flag engine_settled;  // loaded, or given up
    const auto settle = [&] {
        engine_settled.test_and_set();
        engine_settled.notify_all();
    };
    // All threads are waited for: where one fails, the others begin nothing more.
    const auto or_stop = [&](auto&& work) {
        try {
            work();
        } catch (...) {
            stopped = true;
            files.stop();
            settle();
            throw;
        }
    };
    const auto load_preprocessing = [&] {
        dali_ = &load_dali(options.library_folder);
        unused_ = new_graph(static_cast<std::size_t>(slabs_));
    };
    std::atomic<std::size_t> taken{0};
    const auto load_next = [&] {
        const std::size_t i = taken++;
        if (stopped || i >= wanted.size()) return false;
        const Wanted& one = wanted[i];
        *one.place = checked(load_graph(*engine_, bundle, one.file, one.threads), one.file, one.inputs, one.outputs);
        return true;
    };
    const auto in_thread = [&](auto work) {
        const BlockedSignals in_new_thread;
        return std::async(std::launch::async, [&or_stop, work] { or_stop(work); });
    };
    std::future<void> second, third;
    or_stop([&] {
        if (threads > 2) third = in_thread([&] { files.rest(); });
        if (threads > 1)
            second = in_thread([&] {
                files.one();
                engine_settled.wait(false);
                if (stopped) return;
                load_preprocessing();
                while (load_next()) {
                }
                files.rest();
            });
        if (!wanted.empty()) engine_ = make_openvino(options.cache_folder);
        if (engine_ && !options.cache_folder.empty() && !engine_->can_keep())
            callbacks_.say(DRT_LOG_WARNING, "cache_folder is not used, as the host's global std::locale would spoil the numbers of compiled graphs: "
                                            "give it the numeric category of std::locale::classic(), or use DRT_WORKER");
        const auto go_on = [&](double fraction) {
            callbacks_.report(DRT_OPEN, fraction);
            callbacks_.stop_if_cancelled("while opening");
        };
        go_on(0.2);
        settle();
        if (threads == 1) load_preprocessing();
        if (gpu_) encoder_ = checked(gpu_->load(bundle, options.precision), encoder, encoder_inputs, encoder_outputs);
        go_on(0.3);
        while (load_next()) go_on(0.3 + 0.6 * static_cast<double>(std::min(taken.load(), wanted.size())) / static_cast<double>(wanted.size()));
        files.rest();
    });
    for (std::future<void>* one : {&third, &second})
        if (one->valid()) one->get();

    description_.engine = gpu_ ? gpu_->engine() : engine_->name();
    description_.device = gpu_ ? gpu_->device() : engine_->device();
    description_.device_bytes = gpu_ ? gpu_->device_bytes() : 0;
    description_.bundle_sha256 = bundle.sha256;
    description_.host_bytes = grid_.size() * sizeof(float);
    description_.manifest_text = std::move(bundle.manifest_text);
    description_.manifest = std::move(bundle.manifest);
    description_.open_ms = clock.total();
    callbacks_.report(DRT_OPEN, 1);
    if (engine_ && engine_->failed_to_keep())
        callbacks_.say(DRT_LOG_WARNING, "compiled graphs could not be kept in cache_folder " + options.cache_folder +
                                            ": opening stays slow; give a folder that can be written and has room");
    callbacks_.say(DRT_LOG_INFO, "bundle " + description_.manifest.name + " " + description_.manifest.version + " is open on " +
                                     description_.engine + ", " + description_.precision + ", " +
                                     std::to_string(threads) + " threads");
}

Gpu& Session::gpu() const {
    if (!gpu_) throw Error(DRT_ERROR_UNSUPPORTED, "this session is on the CPU: open it with device = DRT_CUDA");
    return *gpu_;
}

GridPlan Session::plan(const SeriesForm& form) const {
    return plan_grid(form.affine, form.shape, description_.manifest.preprocessing);
}

std::unique_ptr<DaliGraph> Session::new_graph(std::size_t batch) const {
    // DALI runs a sample on one thread.
    const auto threads = static_cast<unsigned>(std::min<std::size_t>(description_.threads, batch));
    return std::make_unique<DaliGraph>(*dali_, preprocessing_, batch, threads);
}

void Session::make_grid(const GridPlan& plan, VoxelType type, const Shape& shape, const void* voxels, const Window& window) {
    const Shape& grid_shape = description_.manifest.preprocessing.grid_shape;
    const auto samples = grid_arguments(plan, grid_shape, slabs_, window[0]);
    std::unique_ptr<DaliGraph>& pipeline = grid_graphs_[type];
    if (!pipeline) pipeline = unused_ ? std::move(unused_) : new_graph(samples.size());
    try {
        pipeline->run(voxels, type, shape, samples, grid_);
    } catch (...) {
        grid_graphs_.erase(type);  // DALI does not go on after an error
        throw;
    }
}

void Session::resample_in_plane(const SeriesForm& form, const GridPlan& plan, const void* pixels, float* resampled) {
    const GraphArguments sample = slice_arguments(plan);
    std::unique_ptr<DaliGraph>& pipeline = slice_graphs_[form.stored];
    if (!pipeline) pipeline = new_graph(1);
    try {
        pipeline->run(pixels, form.stored, {1, form.shape[1], form.shape[2]}, {&sample, 1},
                     {resampled, static_cast<std::size_t>(plan.size[1] * plan.size[2])});
    } catch (...) {
        slice_graphs_.erase(form.stored);
        throw;
    }
}

Result Session::run(const SeriesForm& form, const void* voxels) {
    Clock clock;
    callbacks_.report(DRT_PREPROCESS, 0);
    callbacks_.stop_if_cancelled("before preprocessing");
    const Histogram histogram = count_slices(form, voxels, description_.threads);
    const std::span<const float> stored =
        form.stored == VoxelType::float32 ? std::span(static_cast<const float*>(voxels), form.voxels()) : std::span<const float>();
    const Window window = window_of(histogram, description_.manifest.preprocessing, stored);
    const GridPlan grid = plan(form);
    make_grid(grid, form.stored, form.shape, voxels, window);
    return answer(form, grid, window, clock);
}

Result Session::finish(const SeriesForm& form, const GridPlan& whole, const float* planes, const Histogram& histogram,
                       std::span<const float> stored) {
    Clock clock;
    callbacks_.report(DRT_PREPROCESS, 0);
    callbacks_.stop_if_cancelled("before the last of preprocessing");
    const Window window = window_of(histogram, description_.manifest.preprocessing, stored);
    make_grid(after_in_plane(whole), VoxelType::float32, {form.shape[0], whole.size[1], whole.size[2]}, planes, window);
    return answer(form, whole, window, clock);
}

void Session::warm_up() {
    Clock clock;
    callbacks_.report(DRT_PREPROCESS, 0);
    callbacks_.stop_if_cancelled("before preprocessing");
    const Preprocessing& spec = description_.manifest.preprocessing;
    SeriesForm form{DRT_INT16, VoxelType::int16, {warm_up_voxels, warm_up_voxels, warm_up_voxels}, {}, {}, {}};
    form.affine.rows[3][3] = 1;
    for (std::size_t i = 0; i < 3; ++i)  // as large as the grid, so that nothing is padding
        form.affine.rows[2 - i][i] = spec.spacing_mm[i] * static_cast<double>(spec.grid_shape[i]) / warm_up_voxels;
    std::vector<std::int16_t> voxels(form.voxels());
    for (std::size_t i = 0; i < voxels.size(); ++i) voxels[i] = static_cast<std::int16_t>(i % 1000);
    const Window window = {0, 999};

    const GridPlan grid = plan(form);
    Buffer<float> planes(static_cast<std::size_t>(form.shape[0] * grid.size[1] * grid.size[2]));
    for (std::size_t i = 0; i < planes.size(); ++i) planes.data()[i] = static_cast<float>(i % 1000);
    resample_in_plane(form, grid, voxels.data(), planes.data());
    make_grid(after_in_plane(grid), VoxelType::float32, {form.shape[0], grid.size[1], grid.size[2]}, planes.data(), window);
    make_grid(grid, form.stored, form.shape, voxels.data(), window);
    answer(form, grid, window, clock, Heads::always);
}

Result Session::answer(const SeriesForm& form, const GridPlan& grid, const Window& window, Clock& clock, Heads heads) {
    const Preprocessing& spec = description_.manifest.preprocessing;
    const std::array<float, 2> limits = {static_cast<float>(window[0]), static_cast<float>(window[1])};
    Result result;
    result.grid_affine = grid.affine;
    result.source = {form.shape, form.affine};
    result.tokens = select_tokens(grid_, limits, spec, description_.threads);
    result.times.preprocess_ms = clock.stage();
    callbacks_.report(DRT_PREPROCESS, 1);

    callbacks_.stop_if_cancelled("before encoding");
    callbacks_.report(DRT_ENCODE, 0);
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const std::size_t tokens = result.tokens.size(), width = size(description_.manifest.encoder.width);
    Arrays arrays;
    arrays["volume"] = {Element::float32, {1, 1, size(spec.grid_shape[0]), size(spec.grid_shape[1]), size(spec.grid_shape[2])}, grid_.data()};
    arrays["window"] = {Element::float32, {1, 2}, limits.data()};
    arrays["tokens"] = {Element::int64, {1, tokens}, result.tokens.data()};
    std::function<bool()> cancelled;
    if (callbacks_.cancel != nullptr) cancelled = [this] { return callbacks_.cancelled(); };
    Outputs encoded = encoder_->run(arrays, cancelled);
    result.patch = floats(encoded, "patch", {1, tokens, width});
    result.embedding = floats(encoded, "embedding", {1, size(description_.manifest.encoder.embedding_size)});
    if (!std::all_of(result.embedding.begin(), result.embedding.end(), [](float value) { return std::isfinite(value); }))
        throw engine_error("the encoder gave an embedding that is not finite; use another precision");
    const double length = std::sqrt(std::inner_product(result.embedding.begin(), result.embedding.end(), result.embedding.begin(), 0.0));
    if (std::abs(length - 1) > unit_tolerance) throw bundle_error("the encoder gives an embedding that is no unit vector; export the bundle again");
    result.times.encode_ms = clock.stage();
    callbacks_.report(DRT_ENCODE, 1);

    callbacks_.stop_if_cancelled("before the heads");
    callbacks_.report(DRT_HEADS, 0);
    arrays["patch"] = {Element::float32, {1, tokens, width}, result.patch.data()};
    arrays["embedding"] = {Element::float32, {1, result.embedding.size()}, result.embedding.data()};
    result.scope = judge_scope(form, arrays);
    if (result.scope.inside || heads == Heads::always) {
        std::map<std::string, Outputs> said;
        for (const auto& [file, graph] : head_graphs_) {
            callbacks_.stop_if_cancelled("before a head");
            said[file] = graph->run(arrays, cancelled);
        }
        for (const Head& head : description_.manifest.heads) {
            const Output output = given(said.at(head.file), head.file, head_output(head.kind), head.kind == HeadKind::localisation);
            result.heads[head.name] = answer_of(head, output, spec, result.grid_affine, result.source);
        }
    }
    result.times.heads_ms = clock.stage();
    result.times.total_ms = clock.total();
    callbacks_.report(DRT_HEADS, 1);
    return result;
}

// What speaks against a series in its header, before any voxel is asked.
static std::optional<std::string> against_header(const HeaderFacts& header, const Scope& scope) {
    const auto among = [](const std::vector<std::string>& known, const std::string& text) {
        return std::find(known.begin(), known.end(), text) != known.end();
    };
    if (header.modality && !among(scope.modalities, *header.modality))
        return "modality " + plain(*header.modality) + ", made for " + joined(scope.modalities);
    if (!header.body_part || scope.body_parts.empty()) return std::nullopt;
    std::string part = *header.body_part;
    std::transform(part.begin(), part.end(), part.begin(), [](unsigned char c) { return c >= 'a' && c <= 'z' ? c - 32 : c; });
    if (among(scope.body_parts, part)) return std::nullopt;
    return "body part " + plain(part) + ", made for " + joined(scope.body_parts);
}

ScopeAnswer Session::judge_scope(const SeriesForm& form, const Arrays& features) {
    const std::optional<Scope>& scope = description_.manifest.scope;
    if (!scope) return {true, std::nullopt, "the bundle sets no scope"};
    if (const auto reason = against_header(form.header, *scope)) return {false, std::nullopt, *reason};
    Outputs said = scope_->run(features, {});
    const std::vector<float> score = given(said, scope->file, "score").values;
    if (score.size() != 1) throw bundle_error(scope->file + ": gave no single score; export the bundle again");
    const double value = score[0];
    if (!std::isfinite(value)) return {false, std::nullopt, "the " + scope->method + " score is not finite"};
    const bool inside = value >= scope->threshold;
    std::string reason = scope->method + " score " + general(value, 3) + " is " + (inside ? "at least" : "below") +
                         " the threshold " + general(scope->threshold, 3);
    if (!inside && !scope->subject.empty()) reason += ": unlike the " + scope->subject + " the model was made for";
    return {inside, value, reason};
}

}  // namespace decipher
