#pragma once

#include <cstddef>
#include <span>

namespace decipher {

// Refuse a serialised DALI graph that holds anything but the operators of preprocessing: DALI has others that read files
// or call a function by its address. Throws a bundle error. As decipher_rt/preprocess/operators.py.
void check_operators(std::span<const std::byte> graph);

}  // namespace decipher
