#include "npz.hpp"

#include <cstring>
#include <string>

#include "bundle.hpp"
#include "check.hpp"
#include "error.hpp"
#include "written_npz.hpp"

using namespace decipher;

namespace {

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
