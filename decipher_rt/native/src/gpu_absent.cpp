#include "error.hpp"
#include "gpu.hpp"

namespace decipher {

std::unique_ptr<Gpu> make_gpu(const std::string&, const drt_cuda_params&) {
    throw Error(DRT_ERROR_UNSUPPORTED, "this build has no engine for CUDA: configure it with TENSORRT_INCLUDE_DIR, or open with device = DRT_CPU");
}

}  // namespace decipher
