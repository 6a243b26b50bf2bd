// Foreground tokens: the patches of a grid that hold tissue are the encoder's tokens; air costs nothing.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "manifest.hpp"

namespace decipher {

// Flat patch indices, row-major over the patch grid, ascending: the K best patches by tissue, where K is the smallest
// bucket of the manifest that holds all tissue patches. Equal patches rank by index.
std::vector<std::int64_t> select_tokens(std::span<const float> grid, std::array<float, 2> window,
                                        const Preprocessing& spec, unsigned threads);

}  // namespace decipher
