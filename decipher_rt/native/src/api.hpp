// The opaque types of decipher_rt.h, and the copying of structures of other versions.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <thread>

#include "backend.hpp"
#include "error.hpp"

struct drt_session {
    std::unique_ptr<decipher::Backend> backend;
    std::optional<decipher::Result> result;
    std::vector<std::byte> from_device;  // voxels that were given in device memory

    // What was enqueued; the thread is the last member, so that it ends before anything that it uses.
    std::exception_ptr enqueued_failure;
    std::jthread enqueued;
};

struct drt_series {
    drt_session* session = nullptr;
    std::unique_ptr<decipher::Arrival> arrival;
    std::int64_t pixel_bytes = 0, columns = 0;
    bool finished = false;
};

namespace decipher {

template <class Pointer>
Pointer& required(Pointer* pointer, const char* name) {
    if (pointer == nullptr) throw argument_error(std::string(name) + " is NULL");
    return *pointer;
}

// What is enqueued uses the session and its result; nothing else may until it is waited for.
template <class Session>
Session& idle(Session* session) {
    Session& opened = required(session, "session");
    if (opened.enqueued.joinable()) throw argument_error("a volume is enqueued: call drt_session_wait first");
    return opened;
}

// A caller's structure over the defaults: members that its program does not know keep theirs.
template <class Struct>
Struct read_struct(const Struct* from, const char* name, const Struct& defaults) {
    const std::size_t size = required(from, name).struct_size;
    if (size < sizeof(std::size_t) * 2 || size > 4 * sizeof(Struct))
        throw argument_error(std::string(name) + "->struct_size is " + std::to_string(size) +
                             ": set it to the structure's size, or use the function that gives its defaults");
    Struct to = defaults;
    std::memcpy(static_cast<void*>(&to), from, std::min(size, sizeof to));
    return to;
}

// The other way round: fill what the caller's program knows of.
template <class Struct>
void write_struct(Struct* to, std::size_t size, Struct from) {
    from.struct_size = size;
    std::memcpy(static_cast<void*>(to), &from, std::min(size, sizeof from));
}

template <class Struct>
void give_defaults(Struct* to, std::size_t size, const Struct& defaults) {
    if (to == nullptr || size < sizeof(std::size_t)) return;
    std::memset(static_cast<void*>(to), 0, size);
    write_struct(to, size, defaults);
}

// Sets *size to how many values there are. False where the caller asked for no more; throws where its buffer is too small.
inline bool room_for(std::size_t values, const void* to, std::size_t capacity, std::size_t* size, const char* what) {
    required(size, "size") = values;
    if (to == nullptr && capacity == 0) return false;
    if (to == nullptr) throw argument_error("the buffer is NULL and its capacity is not 0");
    if (capacity < values)
        throw Error(DRT_ERROR_BUFFER_SIZE, std::string(what) + " has " + std::to_string(values) +
                                               " values; the buffer holds " + std::to_string(capacity));
    return true;
}

template <class Value>
void copy_values(const std::vector<Value>& from, Value* to, std::size_t capacity, std::size_t* size, const char* what) {
    if (room_for(from.size(), to, capacity, size, what)) std::copy(from.begin(), from.end(), to);
}

}  // namespace decipher
