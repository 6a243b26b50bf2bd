#include "graph_cache.hpp"

#include <unistd.h>

#include <cstring>
#include <fstream>

#include "sha256.hpp"

namespace decipher {

namespace fs = std::filesystem;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

fs::path GraphCache::file_of(const std::string& key) const {
    return folder_ / (hexadecimal(sha256(bytes_of(key))) + ".graph");
}

// The file is a digest of what follows, then the engine's own bytes.
std::optional<Bytes> GraphCache::find(const std::string& key) const {
    if (!enabled()) return std::nullopt;
    std::ifstream file(file_of(key), std::ios::binary | std::ios::ate);
    Digest digest;
    const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) - std::streamoff{sizeof digest} : -1;
    if (size <= 0) return std::nullopt;
    Bytes content(static_cast<std::size_t>(size));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(digest.data()), sizeof digest);
    file.read(reinterpret_cast<char*>(content.data()), size);
    if (!file || sha256(content) != digest) return std::nullopt;
    return content;
}

void GraphCache::keep(const std::string& key, const std::string& content) const noexcept try {
    std::error_code ignored;
    fs::create_directories(folder_, ignored);
    const fs::path target = file_of(key);
    fs::path staging = target;
    staging += "." + std::to_string(getpid()) + "." + std::to_string(reinterpret_cast<std::uintptr_t>(this));
    const Digest digest = sha256(bytes_of(content));
    std::ofstream file(staging, std::ios::binary);
    file.write(reinterpret_cast<const char*>(digest.data()), sizeof digest);
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
