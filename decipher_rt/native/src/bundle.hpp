// A bundle: one folder, opened only if every byte is as it was written. What is used later is the very bytes that were
// summed: no file is read twice.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "manifest.hpp"

namespace decipher {

using Bytes = std::vector<std::byte>;
using Sums = std::map<std::string, std::string>;  // file name to digest

struct Bundle {
    std::filesystem::path path;
    Manifest manifest;
    std::string manifest_text;
    std::string sha256;  // of SHA256SUMS: it names the exact content of every file
    Sums sums;
    std::map<std::string, Bytes> files;  // those that the session needs

    const Bytes& file(const std::string& name) const;
};

// First what says what the bundle is: the list of sums, the folder against the list, the manifest. Throws a bundle error
// that names the file or key that is missing, altered, outside the folder or not understood.
Bundle open_bundle(const std::filesystem::path& folder);
// Then the sums of all files; those of `wanted` are kept. No file is to be used before its sum has been checked here.
void check_files(Bundle& bundle, const std::vector<std::string>& wanted, unsigned threads);

// The parts of opening that need no folder; public for tests and fuzzing.
Sums parse_sums(std::string_view text, const std::string& where);
bool is_plain_relative(std::string_view name);

}  // namespace decipher
