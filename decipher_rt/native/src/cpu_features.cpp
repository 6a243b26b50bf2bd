#include "cpu_features.hpp"

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

namespace decipher {

namespace {

// Int8 with 8-bit weights, which AVX2 without VNNI would saturate; the target "onnx" has 7-bit ones, exact on any CPU.
constexpr std::string_view full_range = "onnx-vnni";
// Any of these adds products of bytes in 32 bits.
constexpr const char* full_range_features[] = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"};

// As Linux says it of the first processor: "flags" on x86-64, "Features" on aarch64.
std::set<std::string> cpu_features() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const auto colon = line.find(':');
        if (colon == line.npos || (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0)) continue;
        std::istringstream words(line.substr(colon + 1));
        std::set<std::string> features;
        for (std::string word; words >> word;) features.insert(word);
        return features;
    }
    return {};
}

bool takes_full_range() {
    const std::set<std::string> features = cpu_features();
    return std::any_of(std::begin(full_range_features), std::end(full_range_features),
                       [&](const char* feature) { return features.contains(feature); });
}

}  // namespace

const EngineFile& onnx_encoder(const Manifest& manifest, std::string_view precision) {
    if (precision == "int8" && takes_full_range())
        for (const EngineFile& engine : manifest.engines)
            if (engine.target == full_range && engine.precision == precision) return engine;
    return manifest.engine_file("onnx", precision);
}

}  // namespace decipher
