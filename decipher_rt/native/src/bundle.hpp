// A bundle: one folder, opened only if every byte that will be used is as it was written. Whatever is used later was summed
// in the very reading that it comes from.
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "buffer.hpp"
#include "manifest.hpp"

namespace decipher {

using Sums = std::map<std::string, std::string>;  // file name to digest

struct Bundle {
    std::filesystem::path path;
    Manifest manifest;
    std::string manifest_text;
    std::string sha256;  // of SHA256SUMS: it names the exact content of every file
    Sums sums;
    std::map<std::string, Bytes> files;  // those that were read

    // The bytes of a file, if its sum is as listed. Any number of threads at a time.
    Bytes content(const std::string& name) const;
    // Read a file and keep it. One thread, while no other asks for a file.
    void read(const std::string& name) { files[name] = content(name); }
    const Bytes& file(const std::string& name) const;
};

// First what says what the bundle is: the list of sums, the folder against the list, the manifest. Throws a bundle error
// that names the file or key that is missing, altered, outside the folder or not understood.
Bundle open_bundle(const std::filesystem::path& folder);

// Then the sums of the files that have not been read, but for encoders other than the one that runs: of several precisions
// they are nearly all of a bundle. Any number of threads may take from the list at a time; it is checked once all of them
// have returned.
class FileCheck {
public:
    FileCheck(const Bundle& bundle, const std::string& encoder);

    void one();
    void rest();
    // Nobody takes anything more.
    void stop() { next_ = files_.size(); }

private:
    bool next();

    std::filesystem::path folder_;
    std::string where_;
    std::vector<std::pair<std::string, std::string>> files_;  // name and digest, the largest first
    std::atomic<std::size_t> next_{0};
};

// The parts of opening that need no folder; public for tests and fuzzing.
Sums parse_sums(std::string_view text, const std::string& where);
bool is_plain_relative(std::string_view name);

}  // namespace decipher
