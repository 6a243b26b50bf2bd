#include <atomic>
#include <sstream>

#include "cuda_device.hpp"
#include "error.hpp"
#include "gpu.hpp"
#include "tensorrt_encoder.hpp"

namespace decipher {

namespace {

constexpr std::string_view kernels_folder = "kernels/";

bool names(const std::string& list, const std::string& word) {
    std::istringstream words(list);
    for (std::string one; words >> one;)
        if (one == word) return true;
    return false;
}

// As decipher_rt/engines/select.py: plans of this flavour and precision whose "architectures" name the card.
std::vector<EngineFile> plan_entries(const Manifest& manifest, std::string_view precision, int architecture) {
    const std::string flavour = tensorrt_flavour, card = "sm_" + std::to_string(architecture);
    std::vector<EngineFile> fitting;
    std::string found;
    for (const EngineFile& entry : manifest.engines) {
        if (entry.target.substr(0, entry.target.find("-sm_")) != flavour || entry.precision != precision) continue;
        const auto architectures = entry.built_with.find("architectures");
        if (architectures == entry.built_with.end()) continue;
        if (names(architectures->second, card)) fitting.push_back(entry);
        found += (found.empty() ? "" : " ") + architectures->second;
    }
    if (fitting.empty())
        throw engine_error("bundle " + manifest.name + " holds " + std::string(precision) + " " + flavour + " engines for " +
                           (found.empty() ? "no card" : found) + ", this card is " + card + "; build one: decipher-rt export CHECKPOINT -o BUNDLE --fp16 --engine " + flavour);
    return fitting;
}

class TensorRtGpu : public Gpu {
public:
    TensorRtGpu(const std::string& folder, const drt_cuda_params& params) : folder_(folder), device_(folder, params) {
        const CudaDevice::Current current(device_);
        const CudaDriver& driver = device_.driver();
        void* flag = nullptr;
        driver.check(driver.allocate_pinned(&flag, sizeof(std::uint32_t), CU_MEMHOSTALLOC_DEVICEMAP), "cuMemHostAlloc");
        gate_ = new (flag) std::atomic<std::uint32_t>(0);
        driver.check(driver.device_pointer(&gate_address_, flag, 0), "cuMemHostGetDevicePointer");
        driver.check(driver.create_stream(&gate_stream_, CU_STREAM_NON_BLOCKING, params.priority), "cuStreamCreateWithPriority");
    }

    ~TensorRtGpu() override {
        try {
            const CudaDevice::Current current(device_);
            device_.driver().destroy_stream(gate_stream_);
            device_.driver().free_pinned(gate_);
        } catch (const Error&) {  // the context is gone, and with it what was in it
        }
    }

    std::string engine() const override { return tensorrt_flavour; }
    std::string device() const override { return "cuda:" + std::to_string(device_.ordinal()); }

    std::vector<std::string> files(const Manifest& manifest, const Sums& sums, std::string_view precision) const override {
        std::vector<std::string> needed;
        for (const EngineFile& entry : plan_entries(manifest, precision, device_.architecture())) needed.push_back(entry.file);
        for (const auto& [name, digest] : sums)
            if (name.rfind(kernels_folder, 0) == 0) needed.push_back(name);
        return needed;
    }

    std::unique_ptr<Graph> load(const Bundle& bundle, std::string_view precision) override {
        auto encoder = make_tensorrt_encoder(folder_, bundle, plan_entries(bundle.manifest, precision, device_.architecture()), device_);
        device_.seal();
        return encoder;
    }

    std::uint64_t device_bytes() const override { return device_.bytes(); }

    void read_back(void* to, const void* from, std::size_t bytes) const override { device_.read_back(to, from, bytes); }

    std::uint32_t close_gate(void* event) override {
        const CudaDevice::Current current(device_);
        const CudaDriver& driver = device_.driver();
        driver.check(driver.wait_value(gate_stream_, gate_address_, ++last_gate_, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32");
        const CUresult recorded = driver.record(static_cast<CUevent>(event), gate_stream_);
        if (recorded != CUDA_SUCCESS) {
            open_gate(last_gate_);
            driver.check(recorded, "cuEventRecord");
        }
        return last_gate_;
    }

    void open_gate(std::uint32_t number) noexcept override { gate_->store(number, std::memory_order_release); }

private:
    std::string folder_;
    CudaDevice device_;
    std::atomic<std::uint32_t>* gate_ = nullptr;
    CUdeviceptr gate_address_ = 0;
    CUstream gate_stream_ = nullptr;
    std::uint32_t last_gate_ = 0;
};

}  // namespace

std::unique_ptr<Gpu> make_gpu(const std::string& library_folder, const drt_cuda_params& params) {
    return std::make_unique<TensorRtGpu>(library_folder, params);
}

}  // namespace decipher
