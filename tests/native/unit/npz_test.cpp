#include "npz.hpp"

#include <cstring>
#include <string>

#include "bundle.hpp"
#include "check.hpp"
#include "error.hpp"

using namespace decipher;

namespace {

std::string number(std::uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) text += i < 8 ? static_cast<char>(value >> (8 * i)) : '\0';
    return text;
}

// As numpy.save writes it.
std::string npy(const std::string& type, const std::string& shape, const std::string& data) {
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
std::string zip(const std::vector<Entry>& entries) {
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

std::map<std::string, NpyArray> read(const std::string& file) { return read_npz("weights.npz", std::as_bytes(std::span(file))); }

}  // namespace

int main() {
    const std::string six = number(1, 2) + number(2, 2) + number(3, 2) + number(4, 2) + number(5, 2) + number(6, 2);
    const std::string good = zip({{"weight.npy", npy("<f2", "2, 3", six)}, {"bias.npy", npy("<f4", "3,", six)}, {"one.npy", npy("<i8", "", number(7, 8))}});
    const auto arrays = read(good);
    CHECK(arrays.size() == 3);
    CHECK(arrays.at("weight").type == "<f2" && arrays.at("weight").shape == (std::vector<std::int64_t>{2, 3}));
    CHECK(arrays.at("weight").data.size() == 12 && std::memcmp(arrays.at("weight").data.data(), six.data(), 12) == 0);
    CHECK(arrays.at("bias").shape == std::vector<std::int64_t>{3} && arrays.at("bias").data.size() == 12);
    CHECK(arrays.at("one").shape.empty() && arrays.at("one").data.size() == 8);
    CHECK(read(zip({})).empty());

    for (const std::string& bad : {std::string(), std::string("PK"), good.substr(0, good.size() - 30), zip({{"a.txt", "x"}}), zip({{"a.npy", "x"}}),
                                   zip({{"a.npy", npy("<f4", "2, 3", six), 8}}), zip({{"a.npy", npy("|O", "2", six)}}), zip({{"a.npy", npy("<f4", "2, 3", six)}}),
                                   zip({{"a.npy", npy("<f4", "9223372036854775807, 9", six)}}), zip({{"a.npy", npy("<f4", "-1", six)}})})
        CHECK_ERROR(read(bad), DRT_ERROR_BUNDLE);
    // Every cut and every spoilt byte is refused or read within bounds (AddressSanitizer looks).
    for (std::size_t i = 0; i < good.size(); ++i) {
        std::string spoilt = good;
        spoilt[i] = static_cast<char>(~spoilt[i]);
        for (const std::string& file : {spoilt, good.substr(0, i)}) try {
                read(file);
            } catch (const Error&) {
            }
    }
}
