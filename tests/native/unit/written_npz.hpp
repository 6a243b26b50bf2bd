// Archives of arrays as numpy.savez writes them, and damaged ones.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

inline std::string number(std::uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) text += i < 8 ? static_cast<char>(value >> (8 * i)) : '\0';
    return text;
}

// As numpy.save writes it.
inline std::string npy(const std::string& type, const std::string& shape, const std::string& data) {
    std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (" + shape + "), }";
    header.resize((10 + header.size() + 64) / 64 * 64 - 10, ' ');
    header.back() = '\n';
    return std::string("\x93NUMPY\x01\x00", 8) + number(header.size(), 2) + header + data;
}

struct Entry {
    std::string name, content;
    int method = 0;
};

// As zipfile writes it, with the extra field that numpy asks for in the local header.
inline std::string zip(const std::vector<Entry>& entries) {
    std::string file, directory;
    for (const auto& [name, content, method] : entries) {
        const std::size_t local = file.size();
        const std::string extra = number(1, 2) + number(16, 2) + number(content.size(), 8) + number(content.size(), 8);
        file += "PK\3\4" + number(45, 2) + number(0, 2) + number(static_cast<std::uint64_t>(method), 2) + number(0, 8) + number(0xffffffff, 4) + number(0xffffffff, 4) + number(name.size(), 2) + number(extra.size(), 2) + name + extra + content;
        directory += "PK\1\2" + number(45, 2) + number(45, 2) + number(0, 2) + number(static_cast<std::uint64_t>(method), 2) + number(0, 8) + number(content.size(), 4) + number(content.size(), 4) + number(name.size(), 2) + number(0, 12) + number(local, 4) + name;
    }
    const std::size_t start = file.size();
    return file + directory + "PK\5\6" + number(0, 4) + number(entries.size(), 2) + number(entries.size(), 2) + number(directory.size(), 4) + number(start, 4) + number(0, 2);
}
