// A serialised DALI graph through dali/dali.h. libdali is loaded at run time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "grid_plan.hpp"
#include "voxels.hpp"

namespace decipher {

struct DaliLibrary;

// Load DALI and register its operators, once for the process: throws an engine error where `folder` holds other libraries than
// those of the first time.
const DaliLibrary& load_dali(const std::string& folder);

// The graph of decipher_rt/preprocess/graph.py, ready to run on batches of a fixed number of samples. Its input voxels
// keep their type from the first run on.
class DaliGraph {
public:
    DaliGraph(const DaliLibrary& library, std::span<const std::byte> serialised, std::size_t batch, unsigned threads);
    ~DaliGraph();
    DaliGraph(const DaliGraph&) = delete;
    DaliGraph& operator=(const DaliGraph&) = delete;

    // Run all samples of the batch on the same voxels (D, H, W), read in place; the samples of the output follow each
    // other in `out`, whose size must be theirs. After an error the graph must be made anew.
    void run(const void* voxels, VoxelType type, const Shape& shape, std::span<const GraphArguments> samples,
             std::span<float> out);

private:
    struct Handles;
    const DaliLibrary& library_;
    std::unique_ptr<Handles> handles_;
    std::size_t batch_;
};

}  // namespace decipher
