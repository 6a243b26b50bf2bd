// Compiled graphs kept on disk, so that the next open is faster. A file that is not exactly what was written is as good
// as absent; who may write to the folder is trusted, as with every compiler's cache.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "bundle.hpp"

namespace decipher {

class GraphCache {
public:
    // An empty folder name: nothing is read or written.
    explicit GraphCache(const std::string& folder) : folder_(folder) {}

    bool enabled() const { return !folder_.empty(); }
    std::optional<Bytes> find(const std::string& key) const;
    // Written beside and renamed. A folder that cannot be written is no error: the next open is slower, that is all.
    void keep(const std::string& key, const std::string& content) const noexcept;
    void forget(const std::string& key) const noexcept;

private:
    std::filesystem::path file_of(const std::string& key) const;

    std::filesystem::path folder_;
};

}  // namespace decipher
