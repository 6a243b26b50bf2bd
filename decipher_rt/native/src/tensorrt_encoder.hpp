#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "cuda_device.hpp"
#include "engine.hpp"

namespace decipher {

// Of the headers that this build was compiled with.
extern const char* const tensorrt_flavour;

class DeviceEncoder : public Graph {
public:
    // Where an output of the last run lies. There has been one.
    virtual const DeviceBuffer& on_device(const std::string& output) const = 0;
};

// The encoder from its plans, fed by the patch-embedding kernel. Takes all its device memory at once.
std::unique_ptr<DeviceEncoder> make_tensorrt_encoder(const std::string& library_folder, const Bundle& bundle, const std::vector<EngineFile>& plans, CudaDevice& device);

}  // namespace decipher
