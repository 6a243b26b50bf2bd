// Compiled graphs kept on disk, so that the next open is faster. A file that is not exactly what was written is as good
// as absent; who may write to the folder is trusted, as with every compiler's cache. Files are mapped and, as they are only
// ever replaced as a whole, stay what they were for as long as somebody uses them.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "mapped_file.hpp"

namespace decipher {

class KeptGraph {
public:
    std::span<const std::byte> bytes() const { return file_.bytes().subspan(header_bytes); }

private:
    friend class GraphCache;
    static constexpr std::size_t header_bytes = 64;  // what follows stays aligned for an engine that uses it in place

    explicit KeptGraph(MappedFile file) : file_(std::move(file)) {}

    MappedFile file_;
};

class GraphCache {
public:
    // An empty folder name: nothing is read or written.
    explicit GraphCache(const std::string& folder) : folder_(folder) {}

    bool enabled() const { return !folder_.empty(); }
    std::optional<KeptGraph> find(const std::string& key) const;
    // Written beside and renamed; false where it was not. That is no error: the next open is slower.
    bool keep(const std::string& key, const std::string& content) const noexcept;
    void forget(const std::string& key) const noexcept;

private:
    std::filesystem::path file_of(const std::string& key) const;

    std::filesystem::path folder_;
};

}  // namespace decipher
