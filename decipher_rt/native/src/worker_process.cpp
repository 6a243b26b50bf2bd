#include "worker_process.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "error.hpp"

extern char** environ;

namespace decipher {

namespace {

namespace fs = std::filesystem;

constexpr const char* worker_name = "decipher-rt-worker";
constexpr int first_copy = 16;
constexpr int end_ms = 2000;  // for a worker to end by itself, and again for the system to end it
constexpr int rounds = 5;
constexpr int pause_ms = 5;   // between two looks, where the kernel has no descriptors of processes
constexpr auto descriptor_of_process = static_cast<idtype_t>(3);  // P_PIDFD, which glibc before 2.36 does not name

const char within = 0;  // a function of the interface may have its address in the host

// Where the library lies. Asked while it is loaded: its name may be relative, and the host may change its working folder.
const fs::path own_folder = [] {
    Dl_info self{};
    if (dladdr(&within, &self) == 0 || self.dli_fname == nullptr) return fs::path();
    std::error_code failed;
    const fs::path name = fs::absolute(self.dli_fname, failed);
    return failed ? fs::path() : name.parent_path();
}();

std::string find_worker() {
    const fs::path& folder = own_folder;
    for (const fs::path& place : {folder / worker_name, folder / "../libexec/decipher_rt" / worker_name,
                                  folder / "../../libexec/decipher_rt" / worker_name}) {
        std::error_code ignored;
        if (!folder.empty() && fs::exists(place, ignored)) return place.string();
    }
    throw engine_error(std::string(worker_name) + " is neither in " + folder.string() +
                       " nor in ../libexec/decipher_rt: install it, or name it in worker_path");
}

// The host's, but that libraries which lie beside ours come before others of the same name that LD_LIBRARY_PATH leads to.
std::vector<std::string> worker_environment() {
    const std::string searched = "LD_LIBRARY_PATH=";
    const fs::path ours = own_folder / "decipher_rt";
    std::error_code ignored;
    const bool deployed = !own_folder.empty() && fs::is_directory(ours, ignored);
    std::vector<std::string> variables;
    for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) variables.emplace_back(*entry);
    for (std::string& variable : variables)
        if (deployed && variable.starts_with(searched) && variable != searched) variable.insert(searched.size(), ours.string() + ":");
    return variables;
}

// Above the numbers that the child gets, so that no dup2 closes what another needs.
Descriptor copy_above(int descriptor) {
    Descriptor copy(fcntl(descriptor, F_DUPFD_CLOEXEC, first_copy));
    if (copy.number() < 0)
        throw engine_error(std::string("no file descriptors for the worker: ") + std::strerror(errno) + "; raise RLIMIT_NOFILE, or close files");
    return copy;
}

}  // namespace

WorkerProcess::WorkerProcess(const std::string& path, int memory_descriptor) : owner_(getpid()) {
    const std::string program = path.empty() ? find_worker() : path;
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        throw engine_error(std::string("no socket pair for the worker: ") + std::strerror(errno));
    socket_ = Descriptor(ends[0]);
    const Descriptor theirs(ends[1]);
    const Descriptor socket_copy = copy_above(ends[1]), memory_copy = copy_above(memory_descriptor);

    std::vector<std::string> variables = worker_environment();
    std::vector<char*> environment;
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    // A worker without one of these would find the host's own files under the numbers.
    int failed = 0;
    const auto add = [&failed](int result) {
        if (failed == 0) failed = result;
    };
    for (int standard = 0; standard < 3; ++standard)
        add(posix_spawn_file_actions_addopen(&actions, standard, "/dev/null", standard == 0 ? O_RDONLY : O_WRONLY, 0));
    add(posix_spawn_file_actions_adddup2(&actions, socket_copy.number(), worker_socket));
    add(posix_spawn_file_actions_adddup2(&actions, memory_copy.number(), worker_memory));
    // The host's blocked and ignored signals are its own; a signal to its group is not for the worker.
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    std::string name = worker_name;
    char* arguments[] = {name.data(), nullptr};
    if (failed == 0) failed = posix_spawn(&pid_, program.c_str(), &actions, &attributes, arguments, environment.data());
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (failed != 0) {
        pid_ = 0;
        throw engine_error("the worker " + program + " does not start: " + std::strerror(failed));
    }
    // A number that names this process only: its pid may be another's once the host has reaped it.
    process_ = Descriptor(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
}

WorkerProcess::~WorkerProcess() {
    if (!is_own()) return;
    shutdown(socket_.number(), SHUT_RDWR);  // a forked child's copy of it would stay open
    // One that the system cannot end, as it waits for a device, is left to it.
    for (int round = 0; round < rounds && !wait(end_ms); ++round) kill();
}

bool WorkerProcess::is_own() const { return getpid() == owner_; }

void WorkerProcess::kill() {
    if (process_.number() >= 0)
        syscall(SYS_pidfd_send_signal, process_.number(), SIGKILL, nullptr, 0);
    else if (!has_ended())
        ::kill(pid_, SIGKILL);
}

// Leaves nothing of a worker that has. The host may have reaped it before.
bool WorkerProcess::has_ended() const {
    siginfo_t ended{};
    const auto asked = [&ended](idtype_t kind, int number) {
        return waitid(kind, static_cast<id_t>(number), &ended, WEXITED | WNOHANG) == 0;
    };
    if (process_.number() >= 0) {
        if (asked(descriptor_of_process, process_.number())) return ended.si_pid != 0;
        if (errno == ECHILD) return true;
    }  // Linux 5.3 and some sandboxes know such descriptors and do not wait for them
    return asked(P_PID, pid_) ? ended.si_pid != 0 : errno == ECHILD;
}

bool WorkerProcess::wait(int milliseconds) const {
    using namespace std::chrono;
    const auto deadline = steady_clock::now() + std::chrono::milliseconds(milliseconds);
    while (!has_ended()) {
        const auto left = static_cast<int>(ceil<std::chrono::milliseconds>(deadline - steady_clock::now()).count());
        if (left <= 0) return false;
        pollfd ending{process_.number(), POLLIN, 0};  // without a descriptor, and where a signal comes, it only pauses
        poll(&ending, 1, process_.number() >= 0 ? left : std::min(left, pause_ms));
    }
    return true;
}

}  // namespace decipher
