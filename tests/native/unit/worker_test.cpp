// A session in a worker process, where the host does not behave: callbacks that throw, what is too long, what cannot be sent.

#include <signal.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "check.hpp"
#include "sample.hpp"

namespace {

struct Host {
    bool progress_throws = false, cancel_throws = false;
    int asked = 0;
};

drt_session_params worker_params(Host* host) {
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.mode = DRT_WORKER;
    params.heads = "";
    params.user_data = host;
    params.progress = [](void* data, drt_stage, double) {
        if (static_cast<Host*>(data)->progress_throws) throw std::runtime_error("the host's own");
    };
    params.cancel = [](void* data) -> int {
        if (static_cast<Host*>(data)->cancel_throws) throw std::runtime_error("the host's own");
        return 0;
    };
    return params;
}

drt_session* open(const char* bundle, Host* host) {
    const drt_session_params params = worker_params(host);
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    return session;
}

bool said(const char* part) { return std::strstr(drt_last_error(), part) != nullptr; }

void no_call_gets_the_answer_to_another(const char* bundle, const Sample& sample) {
    Host host;
    drt_session* session = open(bundle, &host);
    host.progress_throws = true;
    CHECK(drt_session_run(session, &sample.volume) == DRT_ERROR_INTERNAL && said("the host's own"));
    host.progress_throws = false;
    CHECK(drt_session_run(session, &sample.volume) == DRT_ERROR_WORKER_LOST);
    drt_session_close(session);
}

void freeing_a_series_throws_nothing(const char* bundle, const Sample& sample) {
    Host host;
    drt_session_params params = worker_params(&host);
    params.worker_timeout_ms = 3000;
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    drt_series_geometry geometry;
    drt_default_geometry(&geometry, sizeof geometry);
    std::memcpy(geometry.shape, sample.volume.shape, sizeof geometry.shape);
    std::memcpy(geometry.affine_lps_mm, sample.volume.affine_lps_mm, sizeof geometry.affine_lps_mm);
    geometry.type = sample.volume.type;
    drt_series* series = nullptr;
    CHECK(drt_series_begin(session, &geometry, &series) == DRT_OK);
    drt_session_info info{};
    info.struct_size = sizeof info;
    CHECK(drt_session_describe(session, &info) == DRT_OK);
    kill(static_cast<pid_t>(info.worker_pid), SIGSTOP);  // so that the callback could be asked
    host.cancel_throws = true;
    drt_series_free(series);
    host.cancel_throws = false;
    CHECK(drt_session_run(session, &sample.volume) == DRT_ERROR_WORKER_LOST && said("lost"));  // it was silent for too long
    drt_session_close(session);
}

// In process nobody is asked either: a host that says it once would wait for ever.
void pushing_swallows_no_request_to_stop(const char* bundle, const Sample& sample) {
    Host host;
    drt_session_params params = worker_params(&host);
    params.cancel = [](void* data) -> int { return ++static_cast<Host*>(data)->asked, 0; };
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    drt_series_geometry geometry;
    drt_default_geometry(&geometry, sizeof geometry);
    const std::int64_t side = 2048;
    const std::vector<float> pixels(static_cast<std::size_t>(side * side), 1.5f);
    std::memcpy(geometry.affine_lps_mm, sample.volume.affine_lps_mm, sizeof geometry.affine_lps_mm);
    geometry.shape[0] = 2, geometry.shape[1] = geometry.shape[2] = side, geometry.type = DRT_FLOAT32;
    host.asked = 0;
    drt_series* series = nullptr;
    CHECK(drt_series_begin(session, &geometry, &series) == DRT_OK);
    for (int k = 0; k < 2; ++k) {
        drt_slice slice;
        drt_default_slice(&slice, sizeof slice);
        slice.pixels = pixels.data();
        for (int i = 0; i < 3; ++i) slice.position_lps_mm[i] = geometry.affine_lps_mm[4 * i + 3] + k * geometry.affine_lps_mm[4 * i];
        CHECK(drt_series_push(series, &slice) == DRT_OK);
    }
    CHECK(host.asked == 0);
    drt_series_free(series);
    drt_session_close(session);
}

// Only the worker can be silent: a host that takes its time over a callback has heard from it.
void a_slow_host_loses_no_worker(const char* bundle, const Sample& sample) {
    // While the host takes its time the worker stands still, and a little longer: no message of it is waiting then.
    static pid_t worker = 0;
    static std::jthread continued;
    static int slow = 0;
    static constexpr auto take_time = [] {
        if (worker == 0 || ++slow != 1) return;
        kill(worker, SIGSTOP);
        std::this_thread::sleep_for(std::chrono::milliseconds(3500));
        continued = std::jthread([] {
            std::this_thread::sleep_for(std::chrono::milliseconds(300));
            kill(worker, SIGCONT);
        });
    };
    Host host;
    drt_session_params params = worker_params(&host);
    params.worker_timeout_ms = 3000;
    for (const bool asked : {false, true}) {
        params.progress = [](void*, drt_stage stage, double fraction) {
            if (stage == DRT_ENCODE && fraction == 0) take_time();
        };
        params.cancel = [](void*) -> int { return 0; };
        if (asked) {
            params.progress = nullptr;
            params.cancel = [](void*) -> int { return take_time(), 0; };
        }
        drt_session* session = nullptr;
        CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
        drt_session_info info{};
        info.struct_size = sizeof info;
        CHECK(drt_session_describe(session, &info) == DRT_OK);
        slow = 0;
        worker = static_cast<pid_t>(info.worker_pid);
        CHECK(drt_session_run(session, &sample.volume) == DRT_OK && slow > 0);
        worker = 0;
        continued.join();
        drt_session_close(session);
    }
}

void what_is_too_long_is_said(const char* bundle, const Sample& sample) {
    const std::string endless(10'000, 'x');
    Host host;
    drt_session_params params = worker_params(&host);
    params.cache_folder = endless.c_str();
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_ARGUMENT && said("shorten"));
    session = open(bundle, &host);
    drt_volume volume = sample.volume;
    volume.modality = endless.c_str();
    CHECK(drt_session_run(session, &volume) == DRT_ERROR_ARGUMENT && said("shorten"));
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    drt_session_close(session);
}

void opening_is_cancelled(const char* bundle) {
    Host host;
    drt_session_params params = worker_params(&host);
    params.cancel = [](void*) { return 1; };
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_CANCELLED && session == nullptr);
}

void warming_up_leaves_no_result(const char* bundle, const Sample& sample) {
    Host host;
    drt_session* session = open(bundle, &host);
    std::size_t size = 0;
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK && drt_session_warm_up(session) == DRT_OK);
    CHECK(drt_embedding(session, nullptr, 0, &size) == DRT_ERROR_NO_RESULT);
    drt_session_close(session);
}

void pointers_of_cuda_are_refused(const char* bundle) {
    Host host;
    drt_cuda_params cuda;
    drt_cuda_default_params(&cuda, sizeof cuda);
    drt_session_params params = worker_params(&host);
    params.device = DRT_CUDA;
    params.cuda = &cuda;
    int handle = 0;
    cuda.stream = &handle;
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_UNSUPPORTED && said("do not reach a worker process"));
}

}  // namespace

int main(int, char** argv) {
    const Sample sample;
    no_call_gets_the_answer_to_another(argv[1], sample);
    freeing_a_series_throws_nothing(argv[1], sample);
    pushing_swallows_no_request_to_stop(argv[1], sample);
    a_slow_host_loses_no_worker(argv[1], sample);
    what_is_too_long_is_said(argv[1], sample);
    opening_is_cancelled(argv[1]);
    warming_up_leaves_no_result(argv[1], sample);
    pointers_of_cuda_are_refused(argv[1]);
}
