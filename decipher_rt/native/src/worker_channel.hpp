// Between host and worker: small messages over a socket pair, everything large in one piece of shared memory.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace decipher {

// A file descriptor that is closed with its owner.
class Descriptor {
public:
    Descriptor() = default;
    explicit Descriptor(int number) : number_(number) {}
    ~Descriptor() { close(); }
    Descriptor(Descriptor&& other) noexcept : number_(other.number_) { other.number_ = -1; }
    Descriptor& operator=(Descriptor&& other) noexcept;
    int number() const { return number_; }
    void close();

private:
    int number_ = -1;
};

// Memory that both processes map. It only grows: neither can pull it away under the other.
class SharedMemory {
public:
    static SharedMemory create();
    static SharedMemory attach(Descriptor descriptor);
    ~SharedMemory();
    SharedMemory(SharedMemory&& other) noexcept;
    SharedMemory& operator=(SharedMemory&&) = delete;

    // What is large, at least `bytes` of it; an area that was given before is gone.
    std::span<std::byte> area(std::size_t bytes);
    // How large an area either process has asked for so far.
    std::size_t room() const;
    std::atomic<std::uint32_t>& cancel() const { return control().cancel; }
    // The worker holds a robust lock while it lives. The kernel lets go of it the moment the worker's main thread dies,
    // well before it has freed the worker's memory and closed its socket.
    void hold_life() const { pthread_mutex_lock(&control().life); }
    bool is_life_lost() const;
    int descriptor() const { return descriptor_.number(); }

private:
    struct Control {
        std::atomic<std::uint32_t> cancel;
        pthread_mutex_t life;
    };
    Control& control() const { return *reinterpret_cast<Control*>(control_.data()); }

    explicit SharedMemory(Descriptor descriptor) : descriptor_(std::move(descriptor)) {}
    std::span<std::byte> map(std::size_t offset, std::size_t bytes) const;
    void grow(std::size_t bytes) const;

    Descriptor descriptor_;
    std::span<std::byte> control_;  // never mapped anew: the kernel knows the lock by its address
    std::span<std::byte> area_;
};

enum class MessageKind : std::uint32_t {
    open, warm_up, run, begin, push, missing, finish, free_series,  // from the host
    reply, failure, progress, log                                   // from the worker
};

struct Message {
    MessageKind kind;
    std::uint64_t shared_bytes = 0;  // what lies in shared memory
    std::vector<std::byte> content;  // what came with the message; kept small
};

// The most that a message itself may hold.
inline constexpr std::size_t largest_message = 8192;

// False where the other end is gone.
bool send_message(int socket, const Message& message);

enum class Received { message, nothing_yet, gone };
// Wait up to `timeout_ms` (negative: for ever).
Received receive_message(int socket, int timeout_ms, Message& message);

// Whether the other end has closed the socket or died.
bool is_gone(int socket);

}  // namespace decipher
