// Kept graphs: what comes back is what was kept, or nothing. And room in heaps costs no memory until it is used.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "check.hpp"
#include "graph_cache.hpp"
#include "heaps.hpp"

using namespace decipher;
namespace fs = std::filesystem;

namespace {

std::string text_of(const KeptGraph& kept) { return {reinterpret_cast<const char*>(kept.bytes().data()), kept.bytes().size()}; }

fs::path only_file(const fs::path& folder) { return fs::directory_iterator(folder)->path(); }

void kept_graphs(const fs::path& folder) {
    const GraphCache cache(folder.string());
    CHECK(cache.enabled() && !GraphCache("").enabled());
    CHECK(!cache.find("key") && !GraphCache("").find("key"));
    const std::string content = std::string(100'000, 'g') + "end";
    cache.keep("key", content);
    const auto kept = cache.find("key");
    CHECK(kept && text_of(*kept) == content && !cache.find("another key"));
    // An engine may use it in place.
    CHECK(reinterpret_cast<std::uintptr_t>(kept->bytes().data()) % 64 == 0);

    // What somebody holds stays as it was, whatever becomes of the file.
    CHECK(cache.keep("key", "newer"));
    CHECK(text_of(*cache.find("key")) == "newer" && text_of(*kept) == content);
    cache.forget("key");
    CHECK(!cache.find("key") && text_of(*kept) == content);

    // A file that was cut, or altered anywhere, is none.
    for (const std::uintmax_t size : {std::uintmax_t{0}, std::uintmax_t{8}, std::uintmax_t{64}, std::uintmax_t{1000}}) {
        cache.keep("key", content);
        fs::resize_file(only_file(folder), size);
        CHECK(!cache.find("key"));
    }
    for (const std::streamoff at : {0, 64, 5000, 100'066}) {
        cache.keep("key", content);
        std::fstream file(only_file(folder), std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(at);
        file.put('x');
        file.close();
        CHECK(!cache.find("key"));
    }

    // What a process left that died while it wrote goes when it is old; what another may be writing stays.
    const std::string name = only_file(folder).string();
    const fs::path old = name + ".1.2", fresh = name + ".3.4", other = folder / "other.1.2";
    for (const fs::path& file : {old, fresh, other}) std::ofstream(file) << "half";
    for (const fs::path& file : {old, other}) fs::last_write_time(file, fs::file_time_type::clock::now() - std::chrono::hours(2));
    cache.keep("key", content);
    CHECK(!fs::exists(old) && fs::exists(fresh) && fs::exists(other));
    for (const fs::path& file : {fresh, other}) fs::remove(file);
    // Where it cannot be put in its place, nothing is left beside it.
    fs::remove(name);
    fs::create_directory(name);
    cache.keep("key", content);
    CHECK(only_file(folder) == name && std::distance(fs::directory_iterator(folder), {}) == 1);

    fs::remove(name);
    fs::create_directory(folder / "empty");
    CHECK(!MappedFile::open(folder / "empty") && !MappedFile::open(folder / "absent"));
}

// The signal that comes where a file would be too large ends who does not expect it.
void nothing_beyond_the_limit_is_kept(const fs::path& folder) {
    const pid_t limited = fork();
    if (limited == 0) {
        const rlimit small{10'000, 10'000};
        CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
        const GraphCache cache(folder.string());
        CHECK(!cache.keep("large", std::string(10'000, 'g')) && !cache.find("large"));
        CHECK(cache.keep("small", std::string(9'000, 'g')) && cache.find("small"));
        std::exit(0);
    }
    int status = 0;
    CHECK(waitpid(limited, &status, 0) == limited && status == 0);
}

long resident_pages() {
    std::ifstream file("/proc/self/statm");
    long all = 0, resident = 0;
    file >> all >> resident;
    return resident;
}

void room() {
    [[maybe_unused]] const long before = resident_pages();
    make_room_in_heaps();
    make_room_in_heaps();
    // Neither what writes down every block nor an emulator, whose own memory counts.
#if !defined(__SANITIZE_ADDRESS__) && !defined(DECIPHER_RT_EMULATED)
    CHECK((resident_pages() - before) * sysconf(_SC_PAGESIZE) < 4 << 20);
#endif
}

}  // namespace

int main() {
    room();
    const fs::path folder = fs::temp_directory_path() / ("decipher_rt_cache_test_" + std::to_string(getpid()));
    kept_graphs(folder);
    nothing_beyond_the_limit_is_kept(folder);
    fs::remove_all(folder);
}
