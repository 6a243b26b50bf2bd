// Open, first result, then so many runs and streams of a whole head (170 x 256 x 256); one JSON object on standard output.
// The voxels are uint16, as they lie in a file. `first_result_at_s` is by the monotonic clock that all processes share.
//     latency BUNDLE VOXELS ROUNDS THREADS [CACHE_FOLDER [HEADS]]

#include <sys/resource.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <string>
#include <thread>

#include "check.hpp"
#include "sample.hpp"

namespace {

constexpr std::int64_t slices = 170, side = 256;

double milliseconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// What the process has used: processor time of all threads, and pages that the kernel had to map without reading a file.
struct Usage {
    double cpu_ms;
    long page_faults;
};

Usage usage() {
    rusage used{};
    CHECK(getrusage(RUSAGE_SELF, &used) == 0);
    const auto milliseconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_usec) / 1e3; };
    return {milliseconds(used.ru_utime) + milliseconds(used.ru_stime), used.ru_minflt};
}

// Sagittal, 1 mm: slices to the left, rows to the feet, columns to the back.
constexpr double affine[16] = {1, 0, 0, -85, 0, 0, 1, -128, 0, -1, 0, 128, 0, 0, 0, 1};

std::vector<std::uint16_t> read_voxels(const char* path) {
    std::vector<std::uint16_t> voxels(static_cast<std::size_t>(slices * side * side));
    std::ifstream file(path, std::ios::binary);
    CHECK(file.read(reinterpret_cast<char*>(voxels.data()), static_cast<std::streamsize>(voxels.size() * sizeof voxels[0])));
    return voxels;
}

drt_times times_of(const drt_session* session) {
    drt_times times{};
    times.struct_size = sizeof times;
    CHECK(drt_times_of_result(session, &times) == DRT_OK);
    return times;
}

void print(const char* name, const std::vector<double>& values, const char* end = ",") {
    std::cout << '"' << name << "\": [";
    for (std::size_t i = 0; i < values.size(); ++i) std::cout << (i > 0 ? ", " : "") << values[i];
    std::cout << ']' << end << '\n';
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc >= 5);
    const int rounds = std::atoi(argv[3]);
    const std::vector<std::uint16_t> voxels = read_voxels(argv[2]);
    drt_volume volume;
    drt_default_volume(&volume, sizeof volume);
    volume.voxels = voxels.data(), volume.type = DRT_UINT16, volume.modality = "MR";
    volume.shape[0] = slices, volume.shape[1] = volume.shape[2] = side;
    for (int i = 0; i < 16; ++i) volume.affine_lps_mm[i] = affine[i];

    const Usage before_opening = usage();
    const auto start = std::chrono::steady_clock::now();
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = static_cast<std::uint32_t>(std::atoi(argv[4]));
    params.cache_folder = argc > 5 ? argv[5] : nullptr;
    params.heads = argc > 6 ? argv[6] : nullptr;
    drt_session* session = nullptr;
    CHECK(drt_session_open(argv[1], &params, &session) == DRT_OK);
    const double opened = milliseconds_since(start);
    CHECK(drt_session_run(session, &volume) == DRT_OK);
    const double first = milliseconds_since(start);
    const std::chrono::duration<double> at = std::chrono::steady_clock::now().time_since_epoch();
    const Usage used = usage();

    std::vector<double> preprocess, encode, heads, total, push, finish, finish_preprocess, finish_encode, finish_heads;
    for (int round = 0; round < rounds; ++round) {
        CHECK(drt_session_run(session, &volume) == DRT_OK);
        const drt_times whole = times_of(session);
        preprocess.push_back(whole.preprocess_ms), encode.push_back(whole.encode_ms), heads.push_back(whole.heads_ms);
        total.push_back(whole.total_ms);

        drt_series_geometry geometry;
        drt_default_geometry(&geometry, sizeof geometry);
        geometry.type = DRT_UINT16, geometry.modality = "MR";
        drt_series* series = nullptr;
        for (int i = 0; i < 3; ++i) geometry.shape[i] = volume.shape[i];
        for (int i = 0; i < 16; ++i) geometry.affine_lps_mm[i] = affine[i];
        CHECK(drt_series_begin(session, &geometry, &series) == DRT_OK);
        for (std::int64_t k = 0; k < slices; ++k) {
            const std::int64_t index = k * 77 % slices;  // interleaved, as slices come
            drt_slice slice;
            drt_default_slice(&slice, sizeof slice);
            slice.pixels = voxels.data() + index * side * side;
            for (int i = 0; i < 3; ++i) slice.position_lps_mm[i] = affine[4 * i + 3] + static_cast<double>(index) * affine[4 * i];
            const auto before = std::chrono::steady_clock::now();
            CHECK(drt_series_push(series, &slice) == DRT_OK);
            push.push_back(milliseconds_since(before));
        }
        const auto last = std::chrono::steady_clock::now();
        CHECK(drt_series_finish(series) == DRT_OK);
        finish.push_back(milliseconds_since(last));
        const drt_times rest = times_of(session);
        finish_preprocess.push_back(rest.preprocess_ms), finish_encode.push_back(rest.encode_ms), finish_heads.push_back(rest.heads_ms);
        drt_series_free(series);
    }
    std::cout << "{\"open_ms\": " << opened << ", \"open_to_result_ms\": " << first
              << ", \"first_result_at_s\": " << std::fixed << std::setprecision(6) << at.count() << std::defaultfloat
              << ", \"open_to_result_cpu_ms\": " << used.cpu_ms - before_opening.cpu_ms
              << ", \"open_to_result_page_faults\": " << used.page_faults - before_opening.page_faults << ",\n";
    print("preprocess_ms", preprocess);
    print("encode_ms", encode);
    print("heads_ms", heads);
    print("total_ms", total);
    print("push_ms", push);
    print("finish_ms", finish);
    print("finish_preprocess_ms", finish_preprocess);
    print("finish_encode_ms", finish_encode);
    print("finish_heads_ms", finish_heads, "}");
    drt_session_close(session);
}
