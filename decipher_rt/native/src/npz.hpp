// Arrays of a numpy .npz archive (a zip file of .npy files, not compressed), read in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace decipher {

struct NpyArray {
    std::string type;  // as numpy writes it: "<f4", "<f2", "<i8"
    std::vector<std::int64_t> shape;
    std::span<const std::byte> data;  // C order
};

// By name, without ".npy". Throws a bundle error that names `file`.
std::map<std::string, NpyArray> read_npz(const std::string& file, std::span<const std::byte> bytes);

}  // namespace decipher
