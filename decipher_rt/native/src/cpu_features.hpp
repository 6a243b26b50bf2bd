#pragma once

#include <set>
#include <string>

#include "manifest.hpp"

namespace decipher {

// As Linux says it of the first processor: "flags" on x86-64, "Features" on aarch64.
std::set<std::string> cpu_features(const std::string& cpuinfo = "/proc/cpuinfo");

// The ONNX encoder of a precision that is best on a CPU with these features. As decipher_rt/engines/select.py.
const EngineFile& onnx_encoder(const Manifest& manifest, std::string_view precision, const std::set<std::string>& features);

}  // namespace decipher
