// libnvinfer.so.10 on the played libcuda: a plan holds the number of its profiles and the size of its embedding, and its engine
// gives what it is given. What it was not told before it runs, it complains of as TensorRT does.
#include "tensorrt_stubs.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include <dlfcn.h>

#include "played_cuda.hpp"

using namespace nvinfer1;

namespace {

constexpr std::uint64_t weights_bytes = 4096, late_bytes = 64, alignment = 256;
constexpr std::int64_t scratch_bytes = 1024;

// What a runtime was given, for all that it makes.
struct Given {
    ILogger* logger;
    IGpuAllocator* allocator = nullptr;

    bool complain(const char* what) const {
        logger->log(ILogger::Severity::kERROR, what);
        return false;
    }
};

struct Context : IExecutionContext, StubVExecutionContext {
    Context(const Given& given, int embedding_size) : given_(given), embedding_size_(embedding_size) { mImpl = this; }
    ~Context() noexcept override { given_.allocator->deallocateAsync(late_, nullptr); }

    bool setOptimizationProfileAsync(std::int32_t, cudaStream_t) noexcept override { return has_profile_ = true; }
    bool setInputShape(char const* name, Dims const& dims) noexcept override {
        if (std::strcmp(name, "embedded") != 0 || dims.nbDims != 3) return given_.complain("no such input");
        tokens_ = dims.d[1], width_ = dims.d[2];
        return has_profile_ || given_.complain("a shape before the profile");
    }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        addresses_[name] = data;
        return true;
    }
    Dims getTensorShape(char const* name) const noexcept override {
        const bool patch = std::strcmp(name, "patch") == 0;
        return patch ? Dims{3, {1, tokens_, width_}} : Dims{2, {1, embedding_size_}};
    }
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override { has_memory_ = memory != nullptr && size >= scratch_bytes; }

    // The tokens as they are; the embedding has the length 1 and the direction of their number.
    bool enqueueV3(cudaStream_t stream) noexcept override {
        const auto* from = static_cast<const std::uint16_t*>(addresses_["embedded"]);
        auto *patch = static_cast<float*>(addresses_["patch"]), *embedding = static_cast<float*>(addresses_["embedding"]);
        if (tokens_ == 0 || !has_memory_ || from == nullptr || patch == nullptr || embedding == nullptr) return given_.complain("not told everything");
        if (late_ == nullptr) late_ = given_.allocator->allocateAsync(late_bytes, alignment, 0, stream);
        if (late_ == nullptr) return given_.complain("no memory was given");
        const std::int64_t tokens = tokens_, values = tokens_ * width_;
        cuda()->waiting.push_back({stream, [=, size = embedding_size_] {
            for (std::int64_t i = 0; i < values; ++i) patch[i] = played_token(from[i]);
            for (int i = 0; i < size; ++i) embedding[i] = 0;
            embedding[0] = played_direction(tokens);
            embedding[1] = std::sqrt(1 - embedding[0] * embedding[0]);
        }});
        return true;
    }

private:
    IExecutionContext* getPImpl() noexcept override { return this; }
    static Played* cuda() {
        return reinterpret_cast<decltype(&played_cuda)>(dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "played_cuda"))();
    }

    Given given_;
    int embedding_size_;
    bool has_profile_ = false, has_memory_ = false;
    std::int64_t tokens_ = 0, width_ = 0;
    std::map<std::string, void*> addresses_;
    void* late_ = nullptr;
};

struct Engine : ICudaEngine, StubVCudaEngine {
    Engine(const Given& given, std::int32_t profiles, int embedding_size)
        : given_(given), profiles_(profiles), embedding_size_(embedding_size),
          weights_(given.allocator->allocateAsync(weights_bytes, alignment, 0, nullptr)) {
        mImpl = this;
    }
    ~Engine() noexcept override { given_.allocator->deallocateAsync(weights_, nullptr); }

    std::int32_t getNbOptimizationProfiles() const noexcept override { return profiles_; }
    DataType getTensorDataType(char const*) const noexcept override { return DataType::kFLOAT; }
    std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t) const noexcept override { return scratch_bytes; }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
        return strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED ? new Context(given_, embedding_size_) : nullptr;
    }

private:
    ICudaEngine* getPImpl() noexcept override { return this; }

    Given given_;
    std::int32_t profiles_;
    int embedding_size_;
    void* weights_;
};

struct Runtime : IRuntime, StubVRuntime {
    explicit Runtime(ILogger* logger) : given_{logger} { mImpl = this; }

    void setGpuAllocator(IGpuAllocator* allocator) noexcept override { given_.allocator = allocator; }
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        const std::string plan(static_cast<const char*>(blob), size);
        std::int32_t profiles = 0, embedding_size = 0;
        if (std::sscanf(plan.c_str(), "played %d %d", &profiles, &embedding_size) == 2) return new Engine(given_, profiles, embedding_size);
        given_.complain("the plan is of another version");
        return nullptr;
    }
    ICudaEngine* deserializeCudaEngine(IStreamReader&) noexcept override { std::abort(); }

private:
    IRuntime* getPImpl() noexcept override { return this; }

    Given given_;
};

}  // namespace

extern "C" void* createInferRuntime_INTERNAL(void* logger, std::int32_t version) noexcept {
    return version == NV_TENSORRT_VERSION ? static_cast<IRuntime*>(new Runtime(static_cast<ILogger*>(logger))) : nullptr;
}
