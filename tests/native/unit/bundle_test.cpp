// Names, sums and the walk through ONNX; refusals as a whole are compared with Python's in tests/native/test_bundles.py.
#include "bundle.hpp"

#include <string>

#include "check.hpp"
#include "error.hpp"
#include "graph_operators.hpp"
#include "onnx_check.hpp"
#include "utf8.hpp"

using namespace decipher;

namespace {

void names() {
    for (const char* good : {"a", "heads/a.onnx", "a b", "..a", "a..b/c"}) CHECK(is_plain_relative(good));
    for (const char* bad : {"", "/a", "../a", "a/..", "a//b", "./a", "a/", "a\\b", "."}) CHECK(!is_plain_relative(bad));
    CHECK(!is_plain_relative(std::string("a\0b", 3)));
}

void sums() {
    const std::string digest(64, 'a');
    const Sums read = parse_sums(digest + "  manifest.json\n" + digest + " *x/y z\n", "bundle");
    CHECK(read.size() == 2 && read.at("x/y z") == digest);
    for (const std::string& bad : {std::string("x"), digest + "  ", digest + "  a\n", digest + "  ../a\n" + digest + "  manifest.json\n",
                                   std::string(64, 'A') + "  manifest.json\n", digest + "0  manifest.json\n"})
        CHECK_ERROR(parse_sums(bad, "bundle"), DRT_ERROR_BUNDLE);
}

// One length-delimited field of a protocol buffer.
std::string field(int number, const std::string& content) {
    std::string text;
    const auto varint = [&text](std::size_t value) {
        for (; value >= 0x80; value >>= 7) text += static_cast<char>((value & 0x7f) | 0x80);
        text += static_cast<char>(value);
    };
    varint(static_cast<std::size_t>(number) << 3 | 2);
    varint(content.size());
    return text + content;
}

void onnx() {
    const auto check = [](const std::string& model) { check_self_contained("encoder.onnx", std::as_bytes(std::span(model))); };
    const std::string plain = field(8, "weight") + field(9, "\1\2\3\4"), external = field(13, field(1, "location") + field(2, "/etc/passwd"));
    check(field(7, field(5, plain)));
    const std::string located = std::string("\x70\x01", 2);  // data_location = EXTERNAL
    const std::string node = field(5, field(5, plain + external)), nested = field(5, field(6, field(5, external)));
    for (const std::string& hostile :
         {field(7, field(5, plain + external)), field(7, field(5, plain + located)), field(7, field(1, node)), field(7, field(1, nested)),
          field(7, field(15, field(1, external))), field(25, field(7, node)), field(7, field(5, plain)) + "\x3a\x7f", std::string("not a model")})
        CHECK_ERROR(check(hostile), DRT_ERROR_BUNDLE);
}

void operators() {
    const auto check = [](const std::string& graph) { check_operators(std::as_bytes(std::span(graph))); };
    check(field(5, field(1, "Resize")) + field(5, field(1, "Transpose")));
    const std::string message = CHECK_ERROR(check(field(5, field(1, "Resize")) + field(5, field(1, "readers__File"))), DRT_ERROR_BUNDLE);
    CHECK(message.find("readers__File") != message.npos);
    CHECK_ERROR(check(""), DRT_ERROR_BUNDLE);
    CHECK_ERROR(check(field(5, field(1, "Resize")) + "\x2a\x7f"), DRT_ERROR_BUNDLE);
    // A reader that keeps 32 bits of a key takes the first for another operator; the others are no numbers of fields.
    for (const std::string& key : {std::string("\xaa\x80\x80\x80\x10"), std::string("\x02"), std::string(10, '\x80') + "\x01"})
        CHECK_ERROR(check(field(5, field(1, "Resize")) + key + field(1, "readers__File").insert(0, 1, '\x0f')), DRT_ERROR_BUNDLE);
}

void text() {
    CHECK(plain(" HEAD\x1b[2J\n and\tneck\xc2\x9b") == "HEAD [2J and neck" && plain("\xc2\xa0\xc3\x9f\xc2") == "\xc2\xa0\xc3\x9f\xc2");
    CHECK(is_utf8("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"));
    for (const char* bad : {"\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff", "a\xc3"}) CHECK(!is_utf8(bad));
}

}  // namespace

int main() {
    names();
    sums();
    onnx();
    operators();
    text();
}
