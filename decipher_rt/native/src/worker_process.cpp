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

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "error.hpp"

extern char** environ;

namespace decipher {

namespace {

namespace fs = std::filesystem;

constexpr const char* worker_name = "decipher-rt-worker";
constexpr int end_ms = 2000;  // for a worker to end by itself

std::string find_worker() {
    Dl_info self{};
    if (dladdr(reinterpret_cast<const void*>(&drt_version), &self) == 0 || self.dli_fname == nullptr) return {};
    const fs::path folder = fs::absolute(self.dli_fname).parent_path();
    for (const fs::path& place : {folder / worker_name, folder / "../libexec/decipher_rt" / worker_name,
                                  folder / "../../libexec/decipher_rt" / worker_name}) {
        std::error_code ignored;
        if (fs::exists(place, ignored)) return place.string();
    }
    throw engine_error(std::string(worker_name) + " is neither in " + folder.string() +
                       " nor in ../libexec/decipher_rt: install it, or name it in worker_path");
}

}  // namespace

WorkerProcess::WorkerProcess(const std::string& path, int memory_descriptor) {
    const std::string program = path.empty() ? find_worker() : path;
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        throw engine_error(std::string("no socket pair for the worker: ") + std::strerror(errno));
    socket_ = Descriptor(ends[0]);
    // Copies above the numbers that the child gets, so that no dup2 closes what another needs.
    const Descriptor theirs(ends[1]);
    const Descriptor socket_copy(fcntl(ends[1], F_DUPFD_CLOEXEC, 16)), memory_copy(fcntl(memory_descriptor, F_DUPFD_CLOEXEC, 16));

    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    for (int standard = 0; standard < 3; ++standard)
        posix_spawn_file_actions_addopen(&actions, standard, "/dev/null", standard == 0 ? O_RDONLY : O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, socket_copy.number(), worker_socket);
    posix_spawn_file_actions_adddup2(&actions, memory_copy.number(), worker_memory);
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
    const int failed = posix_spawn(&pid_, program.c_str(), &actions, &attributes, arguments, environ);
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
    socket_.close();
    if (pid_ == 0 || wait(end_ms)) return;
    kill();
    wait(-1);
}

void WorkerProcess::kill() {
    if (process_.number() >= 0)
        syscall(SYS_pidfd_send_signal, process_.number(), SIGKILL, nullptr, 0);
    else
        ::kill(pid_, SIGKILL);
}

bool WorkerProcess::wait(int milliseconds) {
    pollfd ended{process_.number(), POLLIN, 0};
    if (process_.number() >= 0 && poll(&ended, 1, milliseconds) <= 0) return false;
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    return true;
}

}  // namespace decipher
