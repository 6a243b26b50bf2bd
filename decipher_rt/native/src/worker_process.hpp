#pragma once

#include <sys/types.h>

#include <string>

#include "worker_channel.hpp"

namespace decipher {

// What the worker finds when it starts.
inline constexpr int worker_socket = 3, worker_memory = 4;

// A running decipher-rt-worker, its end of the socket pair, and the right to kill it and nothing else.
class WorkerProcess {
public:
    // `path` is empty for the worker that was installed with the library.
    WorkerProcess(const std::string& path, int memory_descriptor);
    // Closing the socket tells the worker to end; one that does not is killed, and waited for up to ten seconds in all. In a
    // forked child nothing happens to it.
    ~WorkerProcess();
    WorkerProcess(const WorkerProcess&) = delete;
    WorkerProcess& operator=(const WorkerProcess&) = delete;

    int socket() const { return socket_.number(); }
    pid_t pid() const { return pid_; }
    // Not in a child that this process forks.
    bool is_own() const;
    // Does not wait for the end: freeing a large process takes the system a while. The destructor does.
    void kill();

private:
    bool has_ended() const;
    bool wait(int milliseconds) const;

    Descriptor socket_, process_;
    pid_t pid_ = 0, owner_ = 0;
};

}  // namespace decipher
