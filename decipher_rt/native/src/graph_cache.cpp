#include "graph_cache.hpp"

#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <fstream>

#include "file_limit.hpp"
#include "sha256.hpp"

namespace decipher {

namespace fs = std::filesystem;

namespace {

constexpr auto abandoned_after = std::chrono::hours(1);

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

// The file is a checksum of the engine's bytes, zeros up to the size of a header, and the engine's bytes.
std::optional<KeptGraph> GraphCache::find(const std::string& key) const {
    if (!enabled()) return std::nullopt;
    std::optional<MappedFile> file = MappedFile::open(file_of(key));
    if (!file || file->bytes().size() <= KeptGraph::header_bytes) return std::nullopt;
    std::uint64_t sum = 0;
    std::memcpy(&sum, file->bytes().data(), sizeof sum);
    KeptGraph kept(std::move(*file));
    if (checksum(kept.bytes()) != sum) return std::nullopt;
    return kept;
}

bool GraphCache::keep(const std::string& key, const std::string& content) const noexcept try {
    if (KeptGraph::header_bytes + content.size() > largest_file()) return false;
    std::error_code ignored;
    fs::create_directories(folder_, ignored);
    const fs::path target = file_of(key);
    fs::path staging = target;
    staging += "." + std::to_string(getpid()) + "." + std::to_string(reinterpret_cast<std::uintptr_t>(this));
    std::array<char, KeptGraph::header_bytes> header{};
    const std::uint64_t sum = checksum(bytes_of(content));
    std::memcpy(header.data(), &sum, sizeof sum);
    std::ofstream file(staging, std::ios::binary);
    file.write(header.data(), header.size());
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    file.close();
    std::error_code failed;
    if (file) fs::rename(staging, target, failed);
    const bool kept = file && !failed;
    if (!kept) fs::remove(staging, ignored);
    // What was left by a process that ended while it wrote.
    const std::string begin = target.filename().string() + ".";
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_))
        if (entry.path().filename().string().starts_with(begin) && entry.last_write_time(ignored) < fs::file_time_type::clock::now() - abandoned_after)
            fs::remove(entry.path(), ignored);
    return kept;
} catch (...) {  // no memory, no room, no folder
    return false;
}

void GraphCache::forget(const std::string& key) const noexcept try {
    std::error_code ignored;
    fs::remove(file_of(key), ignored);
} catch (...) {
}

}  // namespace decipher
