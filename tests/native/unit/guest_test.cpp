// A guest in another's process: it prints nothing, and leaves locale, signals, environment, rounding, umask, working folder
// and the processors that a thread may run on as they were; it computes on no more threads than it was given, and its
// threads take none of the host's signals and end with it.

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cfenv>
#include <chrono>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "check.hpp"
#include "sample.hpp"

extern char** environ;

namespace {

// DALI 2.4: 8 inputs of one graph; OpenVINO 2026.4: two for the encoder, and two for a segmentation that has threads of its
// own. Other heads and the scope keep none, however many there are.
constexpr int sleeping_threads = 8 + 2 * 2;

struct Surroundings {
    std::string locale, environment, folder;
    std::vector<struct sigaction> signals;
    sigset_t mask;
    int rounding, floating_exceptions;
    mode_t umask_bits;
};

Surroundings look_around() {
    Surroundings s;
    s.locale = std::setlocale(LC_ALL, nullptr);
    for (char** entry = environ; *entry != nullptr; ++entry) s.environment += std::string(*entry) + '\n';
    for (int number = 1; number < NSIG; ++number) {
        struct sigaction action {};
        if (sigaction(number, nullptr, &action) == 0) s.signals.push_back(action);
    }
    sigemptyset(&s.mask);
    pthread_sigmask(SIG_SETMASK, nullptr, &s.mask);
    s.rounding = std::fegetround();
    s.floating_exceptions = fegetexcept();
    s.umask_bits = umask(022);
    umask(s.umask_bits);
    char folder[4096];
    s.folder = getcwd(folder, sizeof folder) != nullptr ? folder : "";
    return s;
}

void same(const Surroundings& a, const Surroundings& b) {
    CHECK(a.locale == b.locale);
    CHECK(a.environment == b.environment);
    CHECK(a.folder == b.folder);
    CHECK(a.signals.size() == b.signals.size());
    for (std::size_t i = 0; i < a.signals.size(); ++i) {
        CHECK(a.signals[i].sa_handler == b.signals[i].sa_handler);
        CHECK(a.signals[i].sa_flags == b.signals[i].sa_flags);
    }
    for (int number = 1; number < NSIG; ++number) CHECK(sigismember(&a.mask, number) == sigismember(&b.mask, number));
    CHECK(a.rounding == b.rounding && a.floating_exceptions == b.floating_exceptions && a.umask_bits == b.umask_bits);
}

int threads_now() {
    int count = 0;
    DIR* folder = opendir("/proc/self/task");
    while (const dirent* entry = readdir(folder)) count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

// Of threads other than the main one, how many would take one of these signals.
int threads_that_take(std::initializer_list<int> signals) {
    int count = 0;
    DIR* folder = opendir("/proc/self/task");
    while (const dirent* entry = readdir(folder)) {
        if (entry->d_name[0] == '.' || std::atoi(entry->d_name) == getpid()) continue;
        std::ifstream status("/proc/self/task/" + std::string(entry->d_name) + "/status");
        unsigned long long blocked = ~0ULL;  // of a thread that has ended meanwhile
        for (std::string line; std::getline(status, line);)
            if (line.starts_with("SigBlk:")) blocked = std::stoull(line.substr(7), nullptr, 16);
        bool takes = false;
        for (const int number : signals) takes = takes || (blocked >> (number - 1) & 1) == 0;
        count += takes;
    }
    closedir(folder);
    return count;
}

double cpu_seconds() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Open and run on `threads` threads; returns how many threads the process had at the end.
int work(const char* bundle, const Sample& sample, unsigned threads, double* cores) {
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = threads;
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    const double cpu = cpu_seconds();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 5; ++i) CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    *cores = (cpu_seconds() - cpu) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const int count = threads_now();
    CHECK(threads_that_take({SIGTERM, SIGHUP, SIGINT, SIGUSR2, SIGALRM}) == 0);
    drt_session_close(session);
    return count;
}

cpu_set_t processors() {
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    return set;
}

// A thread that its host has bound, unlike the process's first, whose processors others may take for everyone's.
void bound_threads_stay_bound(const char* bundle, const Sample& sample) {
    for (const unsigned threads : {1U, 2U})
        std::thread([&] {
            const cpu_set_t all = processors();
            cpu_set_t one;
            CPU_ZERO(&one);
            for (std::size_t cpu = 0; CPU_COUNT(&one) == 0; ++cpu)
                if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
            CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
            const auto still_bound = [&one] {
                const cpu_set_t now = processors();
                return CPU_EQUAL(&now, &one) != 0;
            };
            drt_session_params params;
            drt_session_default_params(&params, sizeof params);
            params.threads = threads;
            drt_session* session = nullptr;
            CHECK(drt_session_open(bundle, &params, &session) == DRT_OK && still_bound());
            CHECK(drt_session_run(session, &sample.volume) == DRT_OK && still_bound());
            drt_session_close(session);
            CHECK(still_bound());
        }).join();
}

}  // namespace

int main(int, char** argv) {
    const Sample sample;
    for (const char* locale : {"de_DE.UTF-8", "C.UTF-8"})
        if (std::setlocale(LC_ALL, locale) != nullptr) break;
    signal(SIGUSR1, SIG_IGN);
    umask(027);
    const Surroundings before = look_around();
    const int threads_before = threads_now();

    char path[] = "/tmp/decipher-rt-guest-XXXXXX";
    const int captured = mkstemp(path), out = dup(1), err = dup(2);
    std::fflush(nullptr);
    dup2(captured, 1);
    dup2(captured, 2);
    double cores_of_one = 0, cores_of_two = 0;
    const int idle_one = work(argv[1], sample, 1, &cores_of_one);
    const int idle_two = work(argv[1], sample, 2, &cores_of_two);
    drt_session* session = nullptr;
    CHECK(drt_session_open("/nonexistent", nullptr, &session) == DRT_ERROR_BUNDLE);
    std::fflush(nullptr);
    dup2(out, 1);
    dup2(err, 2);
    same(before, look_around());
    struct stat written {};
    CHECK(fstat(captured, &written) == 0);
    unlink(path);
    CHECK(written.st_size == 0);

    std::cout << "1 thread: " << cores_of_one << " cores busy, " << idle_one << " threads in the process; 2 threads: "
              << cores_of_two << " cores, " << idle_two << " threads\n";
    CHECK(cores_of_one < 1.1);
    CHECK(cores_of_two < 2.2);
    CHECK(idle_one <= sleeping_threads + 2);
    CHECK(idle_two <= sleeping_threads + 4);
    bound_threads_stay_bound(argv[1], sample);
    // Of two sessions' threads one may be left, asleep: oneTBB keeps its workers for whoever comes next.
    CHECK(threads_now() <= threads_before + 1);
}
