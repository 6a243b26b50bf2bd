#include "heaps.hpp"

#include <sys/mman.h>

#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace decipher {

namespace {

constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr std::size_t block_bytes = 12 * huge_page;
// The engine's buffers and DALI's outputs are made by the caller's thread, and hold some 30 MB.
constexpr int blocks_of_caller = 2;
// Threads that allocate much while a session is opened and runs first: the one that loads DALI, the engine's, DALI's;
// in between come others that take a heap and hardly use it.
constexpr std::ptrdiff_t other_heaps = 8;

// Allocate, and release: what is free at the end of a heap stays there.
void make_room(int blocks) {
    void* block = std::malloc(block_bytes);
    if (block == nullptr) return;
    const auto begin = reinterpret_cast<std::uintptr_t>(block);
    const std::uintptr_t first = (begin + huge_page - 1) / huge_page * huge_page;
    const std::uintptr_t end = (begin + block_bytes) / huge_page * huge_page;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // a kernel may not have them
    if (blocks > 1) make_room(blocks - 1);
    std::free(block);
}

void make_all_room() {
    // A block of this size would be a mapping of its own; blocks come from heaps once a larger one has been released.
    void* volatile larger = std::malloc(block_bytes + huge_page);
    std::free(larger);
    make_room(blocks_of_caller);
    // All at the same time, or they would share a heap. With the end of a thread its heap waits for the next one.
    std::barrier together(other_heaps);
    std::vector<std::jthread> threads;
    for (std::ptrdiff_t i = 0; i < other_heaps; ++i) {
        try {
            threads.emplace_back([&together] {
                make_room(1);
                together.arrive_and_wait();
            });
        } catch (const std::system_error&) {  // no more threads: fewer heaps
            together.arrive_and_drop();
        }
    }
}

}  // namespace

void make_room_in_heaps() {
    static std::once_flag once;
    std::call_once(once, make_all_room);
}

}  // namespace decipher
