// Written against the documented API of TensorRT 10 and TensorRT-RTX 1; docs/embedding.md says where it has run.
#include "tensorrt_encoder.hpp"

#include <NvInferRuntime.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <locale>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <utility>

#include "error.hpp"
#include "patch_embed.hpp"
#include "shared_library.hpp"

namespace decipher {

#if defined(TRT_MAJOR_RTX)
const char* const tensorrt_flavour = "tensorrt-rtx";
#else
const char* const tensorrt_flavour = "tensorrt";
#endif

namespace {

#if defined(TRT_MAJOR_RTX)
constexpr const char* library_stem = "libtensorrt_rtx.so.";
#else
constexpr const char* library_stem = "libnvinfer.so.";
#endif
constexpr const char* embedded_input = "embedded";

// Told by any thread, also by several at a time, and maybe that there is no memory.
class Log : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard lock(mutex_);
        std::snprintf(last_.data(), last_.size(), "%s", message);
    }
    std::string said() const {
        const std::lock_guard lock(mutex_);
        return last_[0] == '\0' ? "it gives no reason" : one_line(last_.data());
    }

private:
    mutable std::mutex mutex_;
    std::array<char, 1024> last_{};
};

// TensorRT takes its memory where we take ours, so that it is counted, and refused once the session is open.
class Allocator : public nvinfer1::IGpuAsyncAllocator {
public:
    explicit Allocator(CudaDevice& device) : device_(device) {}
    void* allocateAsync(std::uint64_t size, std::uint64_t alignment, nvinfer1::AllocatorFlags, cudaStream_t) noexcept override {
        return device_.allocate(size, alignment);
    }
    bool deallocateAsync(void* memory, cudaStream_t stream) noexcept override {
        // Of no stream is what is let go in no hurry: the default stream would not wait for the session's.
        device_.deallocate(memory, stream != nullptr ? std::optional(stream) : std::nullopt);
        return true;
    }

private:
    CudaDevice& device_;
};

class TensorRtEncoder : public DeviceEncoder {
public:
    TensorRtEncoder(const std::string& folder, const Bundle& bundle, const std::vector<EngineFile>& plans, CudaDevice& device)
        : device_(device), allocator_(device), library_(SharedLibrary::load(folder, library_stem + std::to_string(NV_TENSORRT_MAJOR), "install it, or open with device = DRT_CPU")) {
        current_.emplace(device_);
        const auto create = library_.function<void* (*)(void*, std::int32_t)>("createInferRuntime_INTERNAL");
        runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&log_, NV_TENSORRT_VERSION)));
        if (!runtime_) throw engine_error(std::string(tensorrt_flavour) + " does not start: " + log_.said());
        runtime_->setGpuAllocator(&allocator_);
        embed_ = std::make_unique<PatchEmbed>(bundle, device_);
        const Preprocessing& spec = bundle.manifest.preprocessing;
        embedding_ = bundle.manifest.encoder.embedding_size;
        volume_ = DeviceBuffer(device_, static_cast<std::size_t>(spec.voxels()) * sizeof(float));
        window_ = DeviceBuffer(device_, 2 * sizeof(float));
        std::int64_t scratch = 0;
        for (const EngineFile& plan : plans) add_plan(plan, bundle.file(plan.file), scratch);
        if (scratch > 0) scratch_ = DeviceBuffer(device_, static_cast<std::size_t>(scratch));
        for (auto& [tokens, bucket] : buckets_) {
            bucket.context->setDeviceMemoryV2(scratch_.pointer(), scratch);  // one at a time runs: they share it
            warm_up(tokens, bucket);
        }
        current_.reset();
    }

    ~TensorRtEncoder() override {
        try {
            current_.emplace(device_);
        } catch (const Error&) {  // the context is gone
        }
    }

    const std::vector<std::string>& inputs() const override { return inputs_; }
    const std::vector<std::string>& outputs() const override { return outputs_; }

    Outputs run(const Arrays& arrays, const std::function<bool()>&) override {
        const CudaDevice::Current current(device_);
        const auto kept = static_cast<std::int64_t>(arrays.at("tokens").shape.at(1));
        const auto found = buckets_.find(kept);
        if (found == buckets_.end()) throw engine_error(std::string(tensorrt_flavour) + ": no plan for " + std::to_string(kept) + " tokens");
        Bucket& bucket = found->second;
        last_ = &bucket;
        volume_.upload(arrays.at("volume").data, volume_.bytes());
        window_.upload(arrays.at("window").data, window_.bytes());
        bucket.tokens.upload(arrays.at("tokens").data, bucket.tokens.bytes());
        embed_->launch(volume_, window_, bucket.tokens, kept, bucket.embedded);
        enqueue(bucket);
        Outputs outputs;
        const auto download = [&](const char* name, const DeviceBuffer& from, std::vector<std::size_t> shape) {
            Output& output = outputs[name] = {std::move(shape), std::vector<float>(from.bytes() / sizeof(float)), {}};
            from.download(output.values.data(), from.bytes());
        };
        download("patch", bucket.patch, {1, static_cast<std::size_t>(kept), static_cast<std::size_t>(embed_->width())});
        download("embedding", bucket.embedding, {1, static_cast<std::size_t>(embedding_)});
        device_.driver().check(device_.driver().synchronize(device_.stream()), "cuStreamSynchronize");
        return outputs;
    }

    const DeviceBuffer& on_device(const std::string& output) const override {
        return output == "patch" ? last_->patch : last_->embedding;
    }

private:
    struct Bucket {
        std::unique_ptr<nvinfer1::IExecutionContext> context;
        DeviceBuffer tokens, embedded, patch, embedding;
    };

    void add_plan(const EngineFile& plan, const Bytes& content, std::int64_t& scratch) {
        // Kept at once: whatever fails below, contexts must go before their engine.
        engines_.emplace_back(runtime_->deserializeCudaEngine(content.data(), content.size()));
        nvinfer1::ICudaEngine* const engine = engines_.back().get();
        if (engine == nullptr)
            throw engine_error(plan.file + ": " + tensorrt_flavour + " refuses it on sm_" + std::to_string(device_.architecture()) + ": " + log_.said());
        std::istringstream buckets(plan.built_with.count("tokens") != 0 ? plan.built_with.at("tokens") : "");
        buckets.imbue(std::locale::classic());
        std::int32_t profile = 0;
        for (std::int64_t tokens; buckets >> tokens; ++profile) {
            if (tokens < 1 || profile >= engine->getNbOptimizationProfiles())
                throw bundle_error(plan.file + ": its manifest names other profiles than it has; export the bundle again");
            Bucket& bucket = buckets_[tokens];
            bucket.context = context_of(*engine);
            if (!bucket.context) throw Error(DRT_ERROR_MEMORY, plan.file + ": no memory for its context: " + log_.said());
            scratch = std::max(scratch, engine->getDeviceMemorySizeForProfileV2(profile));
            const auto count = static_cast<std::size_t>(tokens), width = static_cast<std::size_t>(embed_->width());
            bucket.tokens = DeviceBuffer(device_, count * sizeof(std::int64_t));
            bucket.embedded = DeviceBuffer(device_, count * width * 2);  // float16
            bucket.patch = DeviceBuffer(device_, count * width * sizeof(float));
            bucket.embedding = DeviceBuffer(device_, static_cast<std::size_t>(embedding_) * sizeof(float));
            nvinfer1::IExecutionContext& context = *bucket.context;
            const bool good = context.setOptimizationProfileAsync(profile, device_.stream()) &&
                              context.setInputShape(embedded_input, nvinfer1::Dims3{1, tokens, embed_->width()}) &&
                              context.setTensorAddress(embedded_input, bucket.embedded.pointer()) &&
                              context.setTensorAddress("patch", bucket.patch.pointer()) &&
                              context.setTensorAddress("embedding", bucket.embedding.pointer());
            if (!good) throw engine_error(plan.file + ": is not this bundle's encoder: " + log_.said());
            expect_output(plan, *engine, context, "patch", bucket.patch);
            expect_output(plan, *engine, context, "embedding", bucket.embedding);
        }
    }

    // It would be written beyond the memory that it is given.
    static void expect_output(const EngineFile& plan, const nvinfer1::ICudaEngine& engine, const nvinfer1::IExecutionContext& context,
                              const char* name, const DeviceBuffer& place) {
        const nvinfer1::Dims shape = context.getTensorShape(name);
        std::int64_t values = shape.nbDims > 0 ? 1 : 0;
        for (std::int32_t axis = 0; axis < shape.nbDims; ++axis) values *= shape.d[axis];
        if (engine.getTensorDataType(name) != nvinfer1::DataType::kFLOAT || values != static_cast<std::int64_t>(place.bytes() / sizeof(float)))
            throw bundle_error(plan.file + ": its " + name + " is not that of the manifest; export the bundle again");
    }

    std::unique_ptr<nvinfer1::IExecutionContext> context_of(nvinfer1::ICudaEngine& engine) {
        constexpr auto memory = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
#if defined(TRT_MAJOR_RTX)
        // Left to itself it compiles in a thread of its own, while series come and no memory is given any more.
        configs_.emplace_back(engine.createRuntimeConfig());
        if (!configs_.back()) return nullptr;
        configs_.back()->setExecutionContextAllocationStrategy(memory);
        configs_.back()->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
        return std::unique_ptr<nvinfer1::IExecutionContext>(engine.createExecutionContext(configs_.back().get()));
#else
        return std::unique_ptr<nvinfer1::IExecutionContext>(engine.createExecutionContext(memory));
#endif
    }

    // So that whatever the library compiles or allocates late is there before the first series.
    void warm_up(std::int64_t tokens, Bucket& bucket) {
        const std::vector<std::byte> zeros(std::max({volume_.bytes(), bucket.tokens.bytes(), bucket.embedded.bytes()}));
        const float window[2] = {0, 1};
        volume_.upload(zeros.data(), volume_.bytes());
        bucket.tokens.upload(zeros.data(), bucket.tokens.bytes());
        window_.upload(window, sizeof window);
        embed_->launch(volume_, window_, bucket.tokens, tokens, bucket.embedded);
        enqueue(bucket);
        device_.driver().check(device_.driver().synchronize(device_.stream()), "cuStreamSynchronize");
    }

    void enqueue(Bucket& bucket) {
        if (bucket.context->enqueueV3(device_.stream())) return;
        device_.driver().check(device_.driver().synchronize(device_.stream()), "cuStreamSynchronize");  // a lost device says so
        throw engine_error(std::string(tensorrt_flavour) + " does not run: " + log_.said());
    }

    CudaDevice& device_;
    std::optional<CudaDevice::Current> current_;  // while the members below are made, all or some, and while they go
    Log log_;
    Allocator allocator_;
    SharedLibrary library_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::vector<std::unique_ptr<nvinfer1::ICudaEngine>> engines_;
#if defined(TRT_MAJOR_RTX)
    std::vector<std::unique_ptr<nvinfer1::IRuntimeConfig>> configs_;
#endif
    std::unique_ptr<PatchEmbed> embed_;
    DeviceBuffer volume_, window_, scratch_;
    std::map<std::int64_t, Bucket> buckets_;
    const Bucket* last_ = nullptr;  // the one that ran
    std::int64_t embedding_ = 0;
    const std::vector<std::string> inputs_{"volume", "window", "tokens"}, outputs_{"patch", "embedding"};
};

}  // namespace

std::unique_ptr<DeviceEncoder> make_tensorrt_encoder(const std::string& library_folder, const Bundle& bundle, const std::vector<EngineFile>& plans, CudaDevice& device) {
    return std::make_unique<TensorRtEncoder>(library_folder, bundle, plans, device);
}

}  // namespace decipher
