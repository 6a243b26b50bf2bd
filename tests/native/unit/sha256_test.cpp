#include "sha256.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"

using namespace decipher;

namespace {

std::string digest_of(std::string_view text) { return hexadecimal(sha256(std::as_bytes(std::span(text)))); }

}  // namespace

int main() {
    // NIST, "SHA-256 examples" and the byte-oriented short message vectors.
    CHECK(digest_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(digest_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(digest_of(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");

    // Whatever the CPU offers agrees with the plain implementation, at every length around the block borders.
    std::vector<std::byte> bytes(400);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 + i / 5);
    for (std::size_t length = 0; length <= bytes.size(); ++length) {
        const std::span<const std::byte> part(bytes.data(), length);
        CHECK(sha256(part) == sha256(part, sha256_detail::compress_portable));
        for (const std::size_t step : {std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{65}, std::size_t{130}}) {  // in parts
            Sha256 sum;
            for (std::size_t at = 0; at < length; at += step) sum.update(part.subspan(at, std::min(step, length - at)));
            CHECK(sum.finish() == sha256(part));
        }
    }
}
