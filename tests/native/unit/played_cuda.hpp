// What the played libcuda has done so far, for the test that loads it. Like the real one it may be called from any thread,
// and each thread has contexts of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

// Copies, kernels and what the played TensorRT enqueues: nothing is done before the stream is waited for.
struct PlayedWork {
    const void* stream;
    std::function<void()> work;
};

struct Played {
    int retained[2] = {0, 0};
    int current = 0;                    // contexts that were pushed and not popped, of all threads
    std::map<const void*, int> memory;  // address to device
    std::map<const void*, int> streams;
    std::vector<PlayedWork> waiting;
    int modules = 0;
    bool refuses_streams = false;
    bool lost = false;  // the card: what is waited for fails
    std::vector<std::string> wrong;  // calls without a context, or with another device's
};

// What the played TensorRT makes of the place of a token, and of how many there are.
inline float played_token(std::int64_t place) { return static_cast<float>(place) / 2048; }
inline float played_direction(std::int64_t tokens) { return static_cast<float>(tokens) / 2048; }

extern "C" Played* played_cuda();
