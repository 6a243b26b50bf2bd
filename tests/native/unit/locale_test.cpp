// A host with a decimal comma: its compiled graphs are read back as they were, or none is kept, and its locale stays as it is.

#include <stdlib.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <locale>
#include <map>
#include <string>

#include "check.hpp"
#include "sample.hpp"

namespace fs = std::filesystem;

namespace {

constexpr int skipped = 77;

// What localedef writes for LC_NUMERIC (glibc, locale/localeinfo.h), so that no such locale need be installed.
void write_comma_locale(const fs::path& folder) {
    fs::create_directories(folder);
    const std::uint32_t magic = 0x20031115U ^ LC_NUMERIC;
    const std::uint32_t offsets[] = {magic, 6, 32, 34, 35, 36, 40, 44}, wide[] = {',', 0};
    std::ofstream file(folder / "LC_NUMERIC", std::ios::binary);
    file.write(reinterpret_cast<const char*>(offsets), sizeof offsets);
    file.write(",\0\0", 4);
    file.write(reinterpret_cast<const char*>(wide), sizeof wide);
    file.write("UTF-8", 6);
}

std::string one_and_a_half() {
    char text[8];
    std::snprintf(text, sizeof text, "%.1f", 1.5);
    return text;
}

struct Answer {
    std::vector<float> embedding;
    double score = 0;  // of a graph of its own: whether the series is in the model's scope
    int warnings = 0;
};

Answer answer(const char* bundle, const Sample& sample, const std::string& cache_folder) {
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = 2;
    params.cache_folder = cache_folder.empty() ? nullptr : cache_folder.c_str();
    int warnings = 0;
    params.user_data = &warnings;
    params.log = [](void* data, drt_log_level level, const char*) { *static_cast<int*>(data) += level == DRT_LOG_WARNING; };
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    drt_scope scope{};
    scope.struct_size = sizeof scope;
    CHECK(drt_scope_of_result(session, &scope) == DRT_OK);
    const Answer found{embedding_of(session), scope.score, warnings};
    drt_session_close(session);
    return found;
}

void same(const Answer& a, const Answer& b) {
    CHECK(cosine(a.embedding, b.embedding) > 1 - 1e-6);
    CHECK(std::abs(a.score - b.score) < 1e-6);
}

std::map<fs::path, fs::file_time_type> files(const fs::path& folder) {
    std::map<fs::path, fs::file_time_type> found;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) found[entry.path()] = entry.last_write_time();
    return found;
}

struct Numbers : std::numpunct<char> {
    Numbers(char point, char separator) : point_(point), separator_(separator) {}
    char do_decimal_point() const override { return point_; }
    char do_thousands_sep() const override { return separator_; }
    std::string do_grouping() const override { return "\3"; }

private:
    char point_, separator_;
};

// A locale that all threads share cannot be set aside: nothing is kept with it, nor read.
void with_global_locale(const char* bundle, const Sample& sample, const Answer& expected, const fs::path& folder) {
    const std::string plain = (folder / "plain").string(), fresh = (folder / "fresh").string();
    CHECK(answer(bundle, sample, plain).warnings == 0);
    const auto kept = files(plain);
    CHECK(!kept.empty());
    for (Numbers* numbers : {new Numbers(',', '.'), new Numbers('.', ',')}) {  // the locale's own
        const std::locale before = std::locale::global(std::locale(std::locale(), numbers));
        for (const std::string& cache : {plain, fresh}) {
            const Answer found = answer(bundle, sample, cache);
            same(found, expected);
            CHECK(found.warnings == 1);
        }
        CHECK(files(plain) == kept && !fs::exists(fresh));
        std::locale::global(before);
    }
}

}  // namespace

int main(int, char** argv) {
    const fs::path folder = fs::temp_directory_path() / ("decipher_rt_locale_test_" + std::to_string(getpid()));
    const Sample sample;
    const Answer expected = answer(argv[1], sample, "");
    with_global_locale(argv[1], sample, expected, folder);
    write_comma_locale(folder / "comma");
    setenv("LOCPATH", folder.c_str(), 1);
    if (std::setlocale(LC_NUMERIC, "comma") == nullptr || one_and_a_half() != "1,5") {
        fs::remove_all(folder);
        std::cout << "skipped: this C library reads no locale from LOCPATH\n";
        return skipped;
    }
    const std::string cache = (folder / "cache").string();
    same(answer(argv[1], sample, ""), expected);
    same(answer(argv[1], sample, cache), expected);
    const auto kept = files(cache);
    CHECK(!kept.empty());
    same(answer(argv[1], sample, cache), expected);
    CHECK(files(cache) == kept);  // all were read back, none compiled anew
    CHECK(one_and_a_half() == "1,5");
    fs::remove_all(folder);
}
