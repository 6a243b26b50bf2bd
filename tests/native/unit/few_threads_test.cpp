// A host that may have few threads (a limit of its user or of its container): what cannot be had is an error, or is done
// without, and ends nobody. The limit is played here.

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <memory>
#include <string>

#include "check.hpp"
#include "sample.hpp"

namespace {

std::atomic<int> alive{0}, most_alive{1000};
std::atomic<int> take_signals{0};  // threads, also those that end with the call, on which a handler of the host's could run

struct Start {
    void* (*routine)(void*);
    void* argument;
};

void* run_counted(void* given) {
    const Start start = *std::unique_ptr<Start>(static_cast<Start*>(given));
    void* const result = start.routine(start.argument);
    --alive;
    return result;
}

}  // namespace

// Also for the libraries, which look here first.
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*routine)(void*), void* argument) {
    static const auto system_s = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
    if (++alive > most_alive) {
        --alive;
        return EAGAIN;
    }
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    if (sigismember(&blocked, SIGTERM) == 0) ++take_signals;
    auto start = std::make_unique<Start>(Start{routine, argument});
    const int failed = system_s(thread, attributes, run_counted, start.get());
    if (failed == 0)
        start.release();  // the thread's now
    else
        --alive;
    return failed;
}

struct Cache {
    std::string folder = (std::filesystem::temp_directory_path() / "drt-XXXXXX").string();

    Cache() { CHECK(mkdtemp(folder.data()) != nullptr); }
    ~Cache() { std::filesystem::remove_all(folder); }
    std::ptrdiff_t files() const { return std::distance(std::filesystem::directory_iterator(folder), {}); }
};

int main(int, char** argv) {
    const Sample sample;
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = 1;  // in one thread after the other: in two, one may take what the other has counted on
    params.heads = "";
    drt_session* session = nullptr;
    drt_status status = DRT_ERROR_MEMORY;
    for (int most = 0; status != DRT_OK; ++most) {
        CHECK(most < 40);
        most_alive = alive + most;
        status = drt_session_open(argv[1], &params, &session);
        std::cout << most << " threads: " << drt_status_text(status) << (status == DRT_OK ? "" : std::string(": ") + drt_last_error()) << std::endl;
        CHECK(status == DRT_OK || status == DRT_ERROR_MEMORY || status == DRT_ERROR_ENGINE);
    }
    drt_session_close(session);

    // What was kept of a graph stays kept: it is not to blame.
    const Cache cache;
    params.cache_folder = cache.folder.c_str();
    most_alive = 1000;
    CHECK(drt_session_open(argv[1], &params, &session) == DRT_OK);
    drt_session_close(session);
    const std::ptrdiff_t kept = cache.files();
    int without_thread = 0;
    CHECK(kept > 0);
    status = DRT_ERROR_MEMORY;
    for (int most = 0; status != DRT_OK; ++most) {
        CHECK(most < 40);
        most_alive = alive + most;
        status = drt_session_open(argv[1], &params, &session);
        CHECK(cache.files() == kept);
        without_thread += std::string(status == DRT_ERROR_ENGINE ? drt_last_error() : "").find("OpenVINO got no thread") != std::string::npos;
    }
    CHECK(without_thread > 0);
    drt_session_close(session);
    params.cache_folder = nullptr;

    params.threads = 2;
    most_alive = alive.load();
    CHECK(drt_session_open(argv[1], &params, &session) == DRT_ERROR_MEMORY);
    most_alive = 1000;
    CHECK(drt_session_open(argv[1], &params, &session) == DRT_OK);
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    CHECK(take_signals == 0);
    most_alive = alive.load();  // a run goes on with the threads that there are
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    // Another type of voxels wants another graph of DALI's, which ends the process where its second thread is not to be had.
    drt_volume other = sample.volume;
    other.type = DRT_UINT16;
    status = DRT_ERROR_MEMORY;
    for (int most = 0; status != DRT_OK; ++most) {
        CHECK(most < 40);
        most_alive = alive + most;
        status = drt_session_run(session, &other);
        CHECK(status == DRT_OK || status == DRT_ERROR_MEMORY);
    }
    drt_session_close(session);
}
