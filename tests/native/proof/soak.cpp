// So many runs in one process, half of them streamed: memory of the process that does the work must not grow
// after the first WARM_UP of them.
//     soak BUNDLE RUNS WARM_UP [worker]      WARM_UP as many as RUNS: nothing is compared

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "check.hpp"
#include "sample.hpp"

namespace {

constexpr double allowed_growth_mb = 4;  // the allocator's fragments

// Of the process that does the work.
double resident_mb(std::int64_t worker) {
    std::ifstream file("/proc/" + (worker != 0 ? std::to_string(worker) : std::string("self")) + "/statm");
    long total = 0, resident = 0;
    CHECK(file >> total >> resident && resident > 0);
    return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

void stream(drt_session* session, const Sample& sample) {
    drt_series_geometry geometry;
    drt_default_geometry(&geometry, sizeof geometry);
    geometry.type = DRT_INT16;
    std::memcpy(geometry.shape, sample.volume.shape, sizeof geometry.shape);
    std::memcpy(geometry.affine_lps_mm, sample.volume.affine_lps_mm, sizeof geometry.affine_lps_mm);
    drt_series* series = nullptr;
    CHECK(drt_series_begin(session, &geometry, &series) == DRT_OK);
    for (std::int64_t i = 0; i < sample.depth; ++i) {
        drt_slice slice;
        drt_default_slice(&slice, sizeof slice);
        slice.pixels = sample.voxels.data() + i * sample.height * sample.width;
        for (int k = 0; k < 3; ++k)
            slice.position_lps_mm[k] = geometry.affine_lps_mm[4 * k + 3] + static_cast<double>(i) * geometry.affine_lps_mm[4 * k];
        CHECK(drt_series_push(series, &slice) == DRT_OK);
    }
    CHECK(drt_series_finish(series) == DRT_OK);
    drt_series_free(series);
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc >= 4);
    const int runs = std::atoi(argv[2]), warm_up_runs = std::atoi(argv[3]);
    CHECK(0 < warm_up_runs && warm_up_runs <= runs);
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = 2;
    params.mode = argc > 4 ? DRT_WORKER : DRT_IN_PROCESS;
    drt_session* session = nullptr;
    CHECK(drt_session_open(argv[1], &params, &session) == DRT_OK);
    drt_session_info info{};
    info.struct_size = sizeof info;
    CHECK(drt_session_describe(session, &info) == DRT_OK);
    const Sample sample;
    double after_warm_up = 0, highest = 0;
    std::vector<float> first;
    for (int run = 0; run < runs; ++run) {
        if (run % 2 == 0)
            CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
        else
            stream(session, sample);
        if (run == 0) first = embedding_of(session);
        CHECK(cosine(embedding_of(session), first) > 1 - 1e-6);
        if (run + 1 == warm_up_runs) highest = after_warm_up = resident_mb(info.worker_pid);
        if (run >= warm_up_runs) highest = std::max(highest, resident_mb(info.worker_pid));
    }
    drt_session_close(session);
    std::cout << runs << " runs: " << after_warm_up << " MB resident after " << warm_up_runs << ", at most " << highest << " MB after that\n";
    CHECK(highest - after_warm_up <= allowed_growth_mb);
}
