#pragma once

#include <string_view>

#include "manifest.hpp"

namespace decipher {

// The ONNX encoder of a precision that is best on this CPU, which is looked at only where it matters. As
// decipher_rt/engines/select.py.
const EngineFile& onnx_encoder(const Manifest& manifest, std::string_view precision);

}  // namespace decipher
