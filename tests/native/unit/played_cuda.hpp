// What the played libcuda has done so far, for the test that loads it.
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
    std::vector<int> current;           // devices of the contexts that were pushed and not popped
    std::map<const void*, int> memory;  // address to device
    std::map<const void*, int> streams;
    std::vector<PlayedCopy> waiting;
    std::vector<std::string> wrong;  // calls without a context, or with another device's
};

extern "C" Played* played_cuda();
