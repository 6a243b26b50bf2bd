#include "engine.hpp"
#include "error.hpp"

namespace decipher {

std::unique_ptr<Engine> make_openvino(const std::string&) {
    throw Error(DRT_ERROR_UNSUPPORTED, "this build has no engine for the CPU: configure it with DECIPHER_RT_OPENVINO=ON");
}

}  // namespace decipher
