#pragma once

#include <sys/resource.h>

#include <cstdint>
#include <limits>

namespace decipher {

// How large a file this process may make, in bytes: growing one beyond brings a signal that ends the host (SIGXFSZ).
inline std::uint64_t largest_file() {
    rlimit limit{};
    const bool limited = getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
    return limited ? limit.rlim_cur : std::numeric_limits<std::uint64_t>::max();
}

}  // namespace decipher
