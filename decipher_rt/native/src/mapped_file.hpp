// A file as memory: its pages are the page cache's own, neither copied nor cleared.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>

namespace decipher {

class MappedFile {
public:
    // Nothing where the file is absent, empty, or cannot be mapped.
    static std::optional<MappedFile> open(const std::filesystem::path& path);

    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;

    // Not to be written to. Lives as long as the object, also when the file is replaced or removed meanwhile.
    std::span<const std::byte> bytes() const { return bytes_; }

private:
    explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

    std::span<const std::byte> bytes_;
};

}  // namespace decipher
