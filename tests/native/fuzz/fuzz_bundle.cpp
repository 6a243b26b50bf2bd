// libFuzzer: the texts and graphs of a bundle that are read before anything is trusted.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "bundle.hpp"
#include "error.hpp"
#include "graph_operators.hpp"
#include "npz.hpp"
#include "onnx_check.hpp"
#include "utf8.hpp"

using namespace decipher;

namespace {

template <class Function>
void refuse_or_accept(Function&& function) {
    try {
        function();
    } catch (const Error&) {  // a bundle error is an answer; any other exception ends the run
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    const auto bytes = std::as_bytes(std::span(text));
    switch (data[0] % 5) {  // the first byte says what the rest is
        case 0:
            // As open_bundle does, which reads no text that is not UTF-8.
            if (is_utf8(text)) refuse_or_accept([&] { parse_manifest(text); });
            break;
        case 1: refuse_or_accept([&] { parse_sums(text, "bundle"); }); break;
        case 2: refuse_or_accept([&] { check_self_contained("encoder.onnx", bytes); }); break;
        case 4: refuse_or_accept([&] { read_npz("weights.npz", bytes); }); break;
        default: refuse_or_accept([&] { check_operators(bytes); });
    }
    return 0;
}
