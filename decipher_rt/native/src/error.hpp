// Errors inside the library are exceptions; `guarded` turns them into a status and a message at the C boundary.
#pragma once

#include <pthread.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "decipher_rt.h"

namespace decipher {

struct Error : std::runtime_error {
    Error(drt_status code, const std::string& message) : std::runtime_error(message), status(code) {}
    drt_status status;
};

inline Error argument_error(const std::string& message) { return {DRT_ERROR_ARGUMENT, message}; }
inline Error bundle_error(const std::string& message) { return {DRT_ERROR_BUNDLE, message}; }
inline Error series_error(const std::string& message) { return {DRT_ERROR_SERIES, message}; }
inline Error engine_error(const std::string& message) { return {DRT_ERROR_ENGINE, message}; }

const char* last_error() noexcept;

// Keep the message for the calling thread; returns the status.
drt_status remember(drt_status status, const char* message) noexcept;

// Remember the exception that is being handled.
drt_status remember_current() noexcept;

// A host's pthread_cancel waits until the call is over: it would unwind through code that catches all, which ends the process.
template <class Function>
drt_status guarded(Function&& function) noexcept {
    int before = PTHREAD_CANCEL_ENABLE;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    drt_status status = DRT_OK;
    try {
        std::forward<Function>(function)();
    } catch (...) {
        status = remember_current();
    }
    pthread_setcancelstate(before, nullptr);
    return status;
}

// A number in a message: as Python's "%g", whatever the locale.
std::string general(double value, int digits = 6);
// The shape of an array in a message.
std::string shape_text(const std::vector<std::size_t>& shape);

// The first line of what another library said, without its place in its own source.
std::string one_line(const std::string& message);
// A text of others on one line, without what a terminal would obey.
std::string plain(std::string_view text);
// Whether a library that turns what was thrown within into words lacked memory.
bool lacked_memory(const std::string& said);

}  // namespace decipher
