#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace decipher {

// Refuse an ONNX file that takes its weights from other files: they could lie anywhere on the machine, and no sum covers
// them. Throws a bundle error.
void check_self_contained(const std::string& file, std::span<const std::byte> onnx);

}  // namespace decipher
