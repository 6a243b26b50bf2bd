// The patch-embedding kernel of a bundle: from the grid in device memory to embedded tokens, in one launch. How a cubin is
// launched stands in kernels/kernels.json (schema "decipher-rt/kernels/1"); nothing of it is known here.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "bundle.hpp"
#include "cuda_device.hpp"

namespace decipher {

// Of the architectures of cubins ("sm_80", "sm_90a"), the one that serves a card best: its own, or the nearest earlier one
// of the same major number. One with a suffix runs on its own card alone. Empty where none does.
std::string serving_architecture(const std::vector<std::string>& known, int card);

// Throws an engine error where a kernel needs a newer driver ("12.0") than the machine's (12040).
void check_driver(const std::string& kernel, const std::string& needed, int version);

// Throws a bundle error where a cubin says of itself that it is longer than it is.
void check_cubin(const std::string& name, std::span<const std::byte> content);

class PatchEmbed {
public:
    PatchEmbed(const Bundle& bundle, CudaDevice& device);
    PatchEmbed(const PatchEmbed&) = delete;
    PatchEmbed& operator=(const PatchEmbed&) = delete;

    std::int64_t width() const { return width_; }

    // volume (1, 1, D, H, W) and window (1, 2) float32, tokens (1, K) int64, out (1, K, width) float16, on the stream.
    void launch(const DeviceBuffer& volume, const DeviceBuffer& window, const DeviceBuffer& tokens, std::int64_t kept, const DeviceBuffer& out);

private:
    struct Scalar {
        std::int64_t times, block;
        std::string size;  // "batch", "tokens", "rows", or empty
    };
    struct Argument {
        enum class Kind { null, integer, pointer } kind;
        Scalar integer;
        std::string name;
        std::uint64_t alignment;
    };
    struct Unload {
        const CudaDriver* driver;
        void operator()(CUmodule module) const { driver->unload_module(module); }
    };
    static std::int64_t evaluate(const Scalar& scalar, std::int64_t kept);

    CudaDevice& device_;
    std::unique_ptr<std::remove_pointer_t<CUmodule>, Unload> module_;
    CUfunction function_ = nullptr;
    std::vector<Scalar> grid_;
    std::vector<Argument> arguments_;
    unsigned threads_ = 0, shared_bytes_ = 0;
    std::map<std::string, DeviceBuffer> constants_;
    std::int64_t width_ = 0;
};

}  // namespace decipher
