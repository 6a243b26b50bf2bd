#pragma once

namespace decipher {

// Make room in the heaps that this thread and the next few threads of the process will allocate from; the first call
// does, others return at once.
//
// glibc gives every thread that allocates a heap of its own. It grows page by page with a system call each, shrinks
// again as soon as its end is free, and is mapped 4 KiB at a time. Loading DALI and reading back a compiled encoder make
// many small allocations in new threads: thousands of such calls, and most of the page faults of a cold start. Here each
// of these heaps gets its room at once, in huge pages, and keeps it. Only address space is taken: memory is when it is
// used. Where malloc is another one, nothing happens.
//
// For the worker's process only. A few threads more for a moment, and a rule of glibc's that moves for as long as the
// process lives, are not for a library to bring into a host.
void make_room_in_heaps();

}  // namespace decipher
