#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "blocked_signals.hpp"

namespace decipher {

// Call work(i) for every i in [0, count) in up to `threads` threads, the caller's among them; in fewer where the system gives no
// more. They end with the call: a guest keeps no thread that the host did not ask for. The first exception is thrown again here.
template <class Work>
void parallel_for(std::size_t count, unsigned threads, Work&& work) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failing;
    const auto run = [&] {
        for (std::size_t i; (i = next.fetch_add(1)) < count;) {
            try {
                work(i);
            } catch (...) {
                const std::lock_guard lock(failing);
                if (!failure) failure = std::current_exception();
            }
        }
    };
    {
        std::vector<std::jthread> helpers;
        try {
            const BlockedSignals in_new_threads;
            for (std::size_t t = 1; t < std::min<std::size_t>(threads, count); ++t) helpers.emplace_back(run);
        } catch (const std::system_error&) {
        }
        run();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace decipher
