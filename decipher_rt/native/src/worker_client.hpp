// The host's side of a worker process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend.hpp"

namespace decipher {

// Start a worker that opens the same bundle. `path` is empty for the worker that was installed with the library.
std::unique_ptr<Backend> make_worker(const SessionOptions& options, const std::string& path, std::uint32_t timeout_ms);

}  // namespace decipher
