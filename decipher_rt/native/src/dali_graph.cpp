#include "dali_graph.hpp"

#include <dali/dali.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <latch>
#include <mutex>
#include <thread>

#include "blocked_signals.hpp"
#include "error.hpp"
#include "shared_library.hpp"

namespace decipher {

namespace {

constexpr const char* main_library = "libdali.so";
constexpr const char* advice = "copy DALI's libraries beside libdecipher_rt or name their folder in library_folder";
// The graph says the layout; DALI 2.4 crashes on the NULL that its header allows.
constexpr const char* no_layout = "";
constexpr std::size_t inputs_of_graph = 8;
constexpr unsigned most_threads_of_graph = inputs_of_graph + 1;  // beside those that compute

// DALI's statics end before those of a host that was there first, and no pipeline can be destroyed after them.
std::atomic<bool> exiting{false};

// Handlers run in the reverse order: this one before the end of whatever DALI has made so far.
void notice_exit() {
    std::atexit([] { exiting = true; });
}

constexpr daliDataType_t dali_type(VoxelType type) {
    switch (type) {
        case VoxelType::uint8: return DALI_UINT8;
        case VoxelType::uint16: return DALI_UINT16;
        case VoxelType::int16: return DALI_INT16;
        case VoxelType::float32: break;
    }
    return DALI_FLOAT;
}

// What DALI says went wrong, without its source positions and stack.
std::string essence(const char* message) {
    const std::string text = message != nullptr ? message : "";
    std::string first;
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = std::min(text.find('\n', begin), text.size());
        const std::string line = text.substr(begin, end - begin);
        begin = end + 1;
        if (line.find_first_not_of(" \t\r") == line.npos) continue;
        if (first.empty()) first = line;
        bool boilerplate = false;
        for (const char* start : {"Critical error", "Error in", "encountered", "C++ context", "Current pipeline"})
            boilerplate = boilerplate || line.rfind(start, 0) == 0;
        if (!boilerplate) return one_line(line);
    }
    return one_line(first.empty() ? "no message" : first);
}

// DALI ends the process where it gets no thread: whether there are so many is tried before. Others may take them meanwhile.
void try_threads(unsigned count) {
    std::latch tried(1);
    std::vector<std::jthread> threads;
    try {
        for (unsigned i = 0; i < count; ++i) threads.emplace_back([&] { tried.wait(); });
    } catch (...) {
        tried.count_down();
        throw;
    }
    tried.count_down();
}

}  // namespace

struct DaliLibrary {
    decltype(&daliPipelineDeserialize) deserialize;
    decltype(&daliPipelineBuild) build;
    decltype(&daliPipelineRun) run;
    decltype(&daliPipelineDestroy) destroy;
    decltype(&daliPipelineFeedInput) feed;
    decltype(&daliPipelinePopOutputs) pop;
    decltype(&daliPipelineOutputsGet) output;
    decltype(&daliPipelineOutputsDestroy) free_outputs;
    decltype(&daliTensorListCreate) create_list;
    decltype(&daliTensorListAttachSamples) attach;
    decltype(&daliTensorListGetShape) shape;
    decltype(&daliTensorListGetDType) dtype;
    decltype(&daliTensorListCopyOut) copy_out;
    decltype(&daliTensorListDecRef) release;
    decltype(&daliGetLastErrorMessage) last_message;
    decltype(&daliClearLastError) clear_error;

    void check(daliResult_t result, const char* what) const {
        if (result == DALI_SUCCESS) return;
        const std::string message = essence(last_message());
        clear_error();
        const drt_status status = result == DALI_ERROR_OUT_OF_MEMORY || lacked_memory(message) ? DRT_ERROR_MEMORY : DRT_ERROR_ENGINE;
        throw Error(status, "DALI: " + message + " (" + what + ")");
    }
};

const DaliLibrary& load_dali(const std::string& folder) {
    static std::mutex loading;
    static const DaliLibrary* loaded = nullptr;  // for ever, as the libraries
    const std::lock_guard lock(loading);
    if (loaded != nullptr && SharedLibrary::is_loaded(folder, main_library)) return *loaded;
    if (loaded != nullptr)
        throw engine_error("library_folder " + folder + " does not hold the DALI that an earlier session of this process has loaded: "
                           "name the folder that it named, or open with mode = DRT_WORKER");
    const BlockedSignals in_new_threads;
    // In the order in which they depend on each other.
    SharedLibrary::load(folder, "libdali_core.so", advice);
    SharedLibrary::load(folder, "libdali_kernels.so", advice);
    const SharedLibrary dali = SharedLibrary::load(folder, main_library, advice);
    const SharedLibrary operators = SharedLibrary::load(folder, "libdali_operators.so", advice);
    operators.function<void (*)()>("daliInitOperators")();
    notice_exit();
    auto library = std::make_unique<DaliLibrary>();
    const auto find = [&](auto& member, const char* name) { member = dali.function<std::decay_t<decltype(member)>>(name); };
    find(library->deserialize, "daliPipelineDeserialize");
    find(library->build, "daliPipelineBuild");
    find(library->run, "daliPipelineRun");
    find(library->destroy, "daliPipelineDestroy");
    find(library->feed, "daliPipelineFeedInput");
    find(library->pop, "daliPipelinePopOutputs");
    find(library->output, "daliPipelineOutputsGet");
    find(library->free_outputs, "daliPipelineOutputsDestroy");
    find(library->create_list, "daliTensorListCreate");
    find(library->attach, "daliTensorListAttachSamples");
    find(library->shape, "daliTensorListGetShape");
    find(library->dtype, "daliTensorListGetDType");
    find(library->copy_out, "daliTensorListCopyOut");
    find(library->release, "daliTensorListDecRef");
    find(library->last_message, "daliGetLastErrorMessage");
    find(library->clear_error, "daliClearLastError");
    loaded = library.release();
    return *loaded;
}

struct DaliGraph::Handles {
    daliPipeline_h pipeline = nullptr;
};

namespace {

// Frees a DALI object at the end of the scope, whatever happens in it.
template <class Handle, class Free>
class Scoped {
public:
    Scoped(Handle handle, Free free) : handle_(handle), free_(free) {}
    ~Scoped() { free_(handle_); }
    Scoped(const Scoped&) = delete;
    Scoped& operator=(const Scoped&) = delete;

private:
    Handle handle_;
    Free free_;
};

// The inputs of one run; DALI reads them in place, so they live until it is over.
class Feed {
public:
    Feed(const DaliLibrary& dali, daliPipeline_h pipeline) : dali_(dali), pipeline_(pipeline) {}
    ~Feed() {
        for (std::size_t i = 0; i < used_; ++i) dali_.release(lists_[i], nullptr);
    }
    Feed(const Feed&) = delete;
    Feed& operator=(const Feed&) = delete;

    void input(const char* name, daliDataType_t type, std::span<const daliTensorDesc_t> samples) {
        const daliBufferPlacement_t host{DALI_STORAGE_CPU, 0, 0};
        dali_.check(dali_.create_list(&lists_.at(used_), host), "daliTensorListCreate");
        daliTensorList_h list = lists_[used_++];
        dali_.check(dali_.attach(list, static_cast<int>(samples.size()), samples[0].ndim, type, no_layout,
                                 samples.data(), nullptr),
                    "daliTensorListAttachSamples");
        dali_.check(dali_.feed(pipeline_, name, list, nullptr, DALI_FEED_INPUT_NO_COPY, nullptr), name);
    }

private:
    const DaliLibrary& dali_;
    daliPipeline_h pipeline_;
    std::array<daliTensorList_h, inputs_of_graph> lists_{};
    std::size_t used_ = 0;
};

// By shape: daliTensorListGetByteSize goes on saying what an earlier, larger batch took (DALI 2.4).
void check_output(const DaliLibrary& dali, daliTensorList_h output, std::size_t expected) {
    int samples = 0, ndim = 0;
    const std::int64_t* sizes = nullptr;
    daliDataType_t type = DALI_NO_TYPE;
    dali.check(dali.shape(output, &samples, &ndim, &sizes), "daliTensorListGetShape");
    dali.check(dali.dtype(output, &type), "daliTensorListGetDType");
    std::size_t values = 0;
    for (int i = 0; i < samples; ++i) {
        std::size_t volume = 1;
        for (int axis = 0; axis < ndim; ++axis) volume *= static_cast<std::size_t>(*sizes++);
        values += volume;
    }
    if (values != expected || type != DALI_FLOAT)
        throw bundle_error("the DALI graph gave " + std::to_string(values) + " values of type " + std::to_string(type) +
                           ", expected " + std::to_string(expected) + " of float32; export the bundle again");
}

}  // namespace

DaliGraph::DaliGraph(const DaliLibrary& library, std::span<const std::byte> serialised, std::size_t batch, unsigned threads)
    : library_(library), handles_(std::make_unique<Handles>()), batch_(batch) {
    const BlockedSignals in_new_threads;
    try_threads(threads + most_threads_of_graph);
    daliPipelineParams_t params{};
    params.max_batch_size_present = params.num_threads_present = params.exec_type_present = 1;
    params.max_batch_size = static_cast<int>(batch);
    params.num_threads = static_cast<int>(threads);
    // Work starts in the calling thread: no thread of an executor beside those that compute.
    params.exec_type = DALI_EXEC_SIMPLE;
    library_.check(library_.deserialize(&handles_->pipeline, serialised.data(), serialised.size(), &params),
                   "daliPipelineDeserialize");
    const daliResult_t built = library_.build(handles_->pipeline);
    if (built != DALI_SUCCESS) {
        const std::string message = essence(library_.last_message());
        library_.destroy(handles_->pipeline);
        throw engine_error("DALI: " + message + " (daliPipelineBuild)");
    }
}

DaliGraph::~DaliGraph() {
    if (exiting)
        static_cast<void>(handles_.release());  // the process ends, and all with it
    else
        library_.destroy(handles_->pipeline);
}

void DaliGraph::run(const void* voxels, VoxelType type, const Shape& shape, std::span<const GraphArguments> samples,
                    std::span<float> out) {
    if (samples.size() != batch_) throw Error(DRT_ERROR_INTERNAL, "a graph was given a batch of another size");
    const DaliLibrary& dali = library_;
    Feed feed(dali, handles_->pipeline);
    const std::array<std::int64_t, 4> voxel_shape = {shape[0], shape[1], shape[2], 1};
    const std::int64_t three = 3;
    // DALI takes pointers to mutable memory and does not write to its inputs.
    const auto description = [](int ndim, const std::int64_t* sizes, daliDataType_t of, const void* data) {
        return daliTensorDesc_t{ndim, sizes, of, no_layout, const_cast<void*>(data)};
    };
    std::vector<daliTensorDesc_t> list(batch_);
    const auto give = [&](const char* name, daliDataType_t of, auto&& describe) {
        for (std::size_t i = 0; i < batch_; ++i) list[i] = describe(samples[i]);
        feed.input(name, of, list);
    };
    using Sample = const GraphArguments&;
    give("voxels", dali_type(type), [&](Sample) { return description(4, voxel_shape.data(), dali_type(type), voxels); });
    give("size", DALI_FLOAT, [&](Sample s) { return description(1, &three, DALI_FLOAT, s.size.data()); });
    give("roi_start", DALI_FLOAT, [&](Sample s) { return description(1, &three, DALI_FLOAT, s.roi_start.data()); });
    give("roi_end", DALI_FLOAT, [&](Sample s) { return description(1, &three, DALI_FLOAT, s.roi_end.data()); });
    give("permutation", DALI_INT32, [&](Sample s) { return description(0, nullptr, DALI_INT32, &s.permutation); });
    give("anchor", DALI_INT32, [&](Sample s) { return description(1, &three, DALI_INT32, s.anchor.data()); });
    give("shape", DALI_INT32, [&](Sample s) { return description(1, &three, DALI_INT32, s.shape.data()); });
    give("low", DALI_FLOAT, [&](Sample s) { return description(0, nullptr, DALI_FLOAT, &s.low); });

    dali.check(dali.run(handles_->pipeline), "daliPipelineRun");
    static std::once_flag ran;
    std::call_once(ran, notice_exit);  // a first run makes statics too
    daliPipelineOutputs_h outputs = nullptr;
    dali.check(dali.pop(handles_->pipeline, &outputs), "daliPipelinePopOutputs");
    const Scoped free_outputs(outputs, dali.free_outputs);
    daliTensorList_h output = nullptr;
    dali.check(dali.output(outputs, &output, 0), "daliPipelineOutputsGet");
    const Scoped free_output(output, [&dali](daliTensorList_h handle) { dali.release(handle, nullptr); });
    check_output(dali, output, out.size());
    const daliBufferPlacement_t host{DALI_STORAGE_CPU, 0, 0};
    dali.check(dali.copy_out(output, out.data(), host, nullptr, DALI_COPY_SYNC), "daliTensorListCopyOut");
}

}  // namespace decipher
