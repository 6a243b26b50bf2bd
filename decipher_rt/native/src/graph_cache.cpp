#include "graph_cache.hpp"

#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>

#include "sha256.hpp"

namespace decipher {

namespace fs = std::filesystem;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// Against torn and truncated files, at the speed of memory; not against who may write to the folder. FNV-1a by words, in
// four lanes that do not wait for each other.
std::uint64_t checksum(std::span<const std::byte> bytes) {
    constexpr std::uint64_t prime = 0x100000001b3, offset = 0xcbf29ce484222325;
    constexpr std::size_t lanes = 4, step = lanes * sizeof(std::uint64_t);
    std::array<std::uint64_t, lanes> hash = {offset, offset + 1, offset + 2, offset + 3};
    std::size_t at = 0;
    for (; at + step <= bytes.size(); at += step)
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            std::uint64_t word;
            std::memcpy(&word, bytes.data() + at + lane * sizeof word, sizeof word);
            hash[lane] = (hash[lane] ^ word) * prime;
            hash[lane] ^= hash[lane] >> 32;
        }
    std::uint64_t all = offset ^ bytes.size();
    for (const std::uint64_t one : hash) all = (all ^ one) * prime;
    for (; at < bytes.size(); ++at) all = (all ^ std::to_integer<std::uint64_t>(bytes[at])) * prime;
    return all;
}

}  // namespace

fs::path GraphCache::file_of(const std::string& key) const {
    return folder_ / (hexadecimal(sha256(bytes_of(key))) + ".graph");
}

// The file is a checksum of what follows, then the engine's own bytes.
std::optional<Bytes> GraphCache::find(const std::string& key) const {
    if (!enabled()) return std::nullopt;
    std::ifstream file(file_of(key), std::ios::binary | std::ios::ate);
    std::uint64_t sum = 0;
    const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) - std::streamoff{sizeof sum} : -1;
    if (size <= 0) return std::nullopt;
    Bytes content(static_cast<std::size_t>(size));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(&sum), sizeof sum);
    file.read(reinterpret_cast<char*>(content.data()), size);
    if (!file || checksum(content) != sum) return std::nullopt;
    return content;
}

void GraphCache::keep(const std::string& key, const std::string& content) const noexcept try {
    std::error_code ignored;
    fs::create_directories(folder_, ignored);
    const fs::path target = file_of(key);
    fs::path staging = target;
    staging += "." + std::to_string(getpid()) + "." + std::to_string(reinterpret_cast<std::uintptr_t>(this));
    const std::uint64_t sum = checksum(bytes_of(content));
    std::ofstream file(staging, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&sum), sizeof sum);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    file.close();
    if (file)
        fs::rename(staging, target, ignored);
    else
        fs::remove(staging, ignored);
} catch (...) {  // no memory, no room: not kept
}

void GraphCache::forget(const std::string& key) const noexcept try {
    std::error_code ignored;
    fs::remove(file_of(key), ignored);
} catch (...) {
}

}  // namespace decipher
