// Threads inherit what the one that makes them blocks: ours and the engines' shall never take a signal of the host's.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace decipher {

// While this lives, the thread takes no signals but those of its own faults.
class BlockedSignals {
public:
    BlockedSignals() {
        sigset_t ours;
        sigfillset(&ours);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT}) sigdelset(&ours, fault);
        pthread_sigmask(SIG_BLOCK, &ours, &theirs_);
    }
    ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &theirs_, nullptr); }
    BlockedSignals(const BlockedSignals&) = delete;
    BlockedSignals& operator=(const BlockedSignals&) = delete;

private:
    sigset_t theirs_;
};

}  // namespace decipher
