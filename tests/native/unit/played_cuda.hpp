// What the played libcuda has done so far, for the test that loads it. Like the real one it may be called from any thread,
// and each thread has contexts of its own.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

struct PlayedCopy {
    const void* stream;
    void* to;
    const void* from;
    std::size_t bytes;
};

struct Played {
    int retained[2] = {0, 0};
    int current = 0;                    // contexts that were pushed and not popped, of all threads
    std::map<const void*, int> memory;  // address to device
    std::map<const void*, int> streams;
    std::vector<PlayedCopy> waiting;
    int modules = 0;
    bool refuses_streams = false;
    std::vector<std::string> wrong;  // calls without a context, or with another device's
};

extern "C" Played* played_cuda();
