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

// As decipher_rt/engines/select.py: plans of this flavour and precision whose "architectures" name that of the card, and whose
// "card", where it is said, is its name.
std::vector<EngineFile> plan_entries(const Manifest& manifest, std::string_view precision, const CudaDevice& device) {
    const std::string flavour = tensorrt_flavour, card = "sm_" + std::to_string(device.architecture()), name = device.name();
    std::vector<EngineFile> fitting;
    std::string found;
    for (const EngineFile& entry : manifest.engines) {
        if (entry.target.substr(0, entry.target.find("-sm_")) != flavour || entry.precision != precision) continue;
        const auto architectures = entry.built_with.find("architectures");
        if (architectures == entry.built_with.end()) continue;
        const auto built_on = entry.built_with.find("card");
        const bool same_card = built_on == entry.built_with.end() || built_on->second == name;
        if (same_card && names(architectures->second, card)) fitting.push_back(entry);
        found += (found.empty() ? "" : ", ") + architectures->second + (same_card ? "" : " (" + built_on->second + ")");
    }
    if (fitting.empty())
        throw engine_error("bundle " + manifest.name + " holds " + std::string(precision) + " " + flavour + " engines for " +
                           (found.empty() ? "no card" : found) + ", this card is " + card + " (" + name + "); build one: decipher-rt export CHECKPOINT -o BUNDLE --fp16 --engine " + flavour);
    return fitting;
}

class TensorRtGpu : public Gpu {
public:
    TensorRtGpu(const std::string& folder, const drt_cuda_params& params) : folder_(folder), device_(params) {}

    std::string engine() const override { return tensorrt_flavour; }
    std::string device() const override { return "cuda:" + std::to_string(device_.ordinal()); }

    std::vector<std::string> files(const Manifest& manifest, const Sums& sums, std::string_view precision) const override {
        std::vector<std::string> needed;
        for (const EngineFile& entry : plan_entries(manifest, precision, device_)) needed.push_back(entry.file);
        for (const auto& [name, digest] : sums)
            if (name.rfind(kernels_folder, 0) == 0) needed.push_back(name);
        return needed;
    }

    std::unique_ptr<Graph> load(const Bundle& bundle, std::string_view precision) override {
        auto encoder = make_tensorrt_encoder(folder_, bundle, plan_entries(bundle.manifest, precision, device_), device_);
        device_.seal();
        encoder_ = encoder.get();
        return encoder;
    }

    std::uint64_t device_bytes() const override { return device_.bytes(); }

    void read_back(void* to, const void* from, std::size_t bytes) const override { device_.read_back(to, from, bytes); }
    void copy_output(const std::string& output, void* to, std::size_t bytes) const override {
        device_.copy(to, encoder_->on_device(output).pointer(), bytes);
    }

private:
    std::string folder_;
    CudaDevice device_;
    const DeviceEncoder* encoder_ = nullptr;  // the session's, which asks for its outputs
};

}  // namespace

std::unique_ptr<Gpu> make_gpu(const std::string& library_folder, const drt_cuda_params& params) {
    return std::make_unique<TensorRtGpu>(library_folder, params);
}

}  // namespace decipher
