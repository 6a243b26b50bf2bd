// The encoder on a GPU, behind what every build has: without TENSORRT_INCLUDE_DIR all of it says that it is not there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"

namespace decipher {

class Gpu {
public:
    Gpu() = default;
    virtual ~Gpu() = default;
    Gpu(const Gpu&) = delete;
    Gpu& operator=(const Gpu&) = delete;

    virtual std::string engine() const = 0;  // "tensorrt" or "tensorrt-rtx"
    virtual std::string device() const = 0;  // "cuda:0"

    // The files of a bundle that the encoder needs on this card. Throws an engine error that says what there is.
    virtual std::vector<std::string> files(const Manifest& manifest, const Sums& sums, std::string_view precision) const = 0;
    // Takes all device memory that will ever be needed.
    virtual std::unique_ptr<Graph> load(const Bundle& bundle, std::string_view precision) = 0;
    virtual std::uint64_t device_bytes() const = 0;

    // From device memory of the session's context, behind what lies on the session's stream.
    virtual void read_back(void* to, const void* from, std::size_t bytes) const = 0;
    // What the encoder gave in its last run, by the name of the output, to device memory of the same context: in turn on the
    // stream, and waited for where that is not the caller's, who could not wait for it.
    virtual void copy_output(const std::string& output, void* to, std::size_t bytes) const = 0;
};

// Throws DRT_ERROR_UNSUPPORTED where this build has no GPU engine.
std::unique_ptr<Gpu> make_gpu(const std::string& library_folder, const drt_cuda_params& params);

}  // namespace decipher
