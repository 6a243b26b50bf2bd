#include "worker_channel.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "error.hpp"

namespace decipher {

namespace {

constexpr std::size_t control_bytes = 4096;
constexpr std::size_t growth_bytes = std::size_t{1} << 20;

Error system_error(const std::string& what) { return {DRT_ERROR_MEMORY, what + ": " + std::strerror(errno)}; }

struct Header {
    MessageKind kind;
    std::uint64_t shared_bytes;
};

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
    close();
    number_ = std::exchange(other.number_, -1);
    return *this;
}

void Descriptor::close() {
    if (number_ >= 0) ::close(number_);
    number_ = -1;
}

SharedMemory SharedMemory::create() {
    SharedMemory memory{Descriptor(memfd_create("decipher-rt", MFD_CLOEXEC | MFD_ALLOW_SEALING))};
    if (memory.descriptor() < 0) throw system_error("shared memory cannot be made");
    // A file that shrinks would kill whoever touches the lost pages.
    if (ftruncate(memory.descriptor(), control_bytes) != 0 || fcntl(memory.descriptor(), F_ADD_SEALS, F_SEAL_SHRINK) != 0)
        throw system_error("shared memory cannot be made");
    memory.map(control_bytes);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&memory.control().life, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return memory;
}

bool SharedMemory::is_life_lost() const {
    const int tried = pthread_mutex_trylock(&control().life);
    if (tried == 0 || tried == EOWNERDEAD) pthread_mutex_unlock(&control().life);
    return tried == EOWNERDEAD || tried == ENOTRECOVERABLE;
}

SharedMemory SharedMemory::attach(Descriptor descriptor) {
    SharedMemory memory(std::move(descriptor));
    memory.map(control_bytes);
    return memory;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : descriptor_(std::move(other.descriptor_)), mapped_(std::exchange(other.mapped_, nullptr)), size_(std::exchange(other.size_, 0)) {}

SharedMemory::~SharedMemory() {
    if (mapped_ != nullptr) munmap(mapped_, size_);
}

std::span<std::byte> SharedMemory::area(std::size_t bytes) {
    if (control_bytes + bytes > size_) {
        const std::size_t size = control_bytes + (bytes + growth_bytes - 1) / growth_bytes * growth_bytes;
        struct stat now {};
        if (fstat(descriptor(), &now) != 0) throw system_error("shared memory cannot be measured");
        if (static_cast<std::size_t>(now.st_size) < size && ftruncate(descriptor(), static_cast<off_t>(size)) != 0)
            throw system_error("shared memory cannot grow to " + std::to_string(size) + " bytes");
        map(size);
    }
    return {mapped_ + control_bytes, bytes};
}

void SharedMemory::map(std::size_t bytes) {
    void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor(), 0);
    if (address == MAP_FAILED) throw system_error("shared memory cannot be mapped");
    if (mapped_ != nullptr) munmap(mapped_, size_);
    mapped_ = static_cast<std::byte*>(address);
    size_ = bytes;
}

bool send_message(int socket, const Message& message) {
    if (message.content.size() > largest_message) throw Error(DRT_ERROR_INTERNAL, "a message to the worker is too long");
    Header header{message.kind, message.shared_bytes};
    iovec parts[2] = {{&header, sizeof header}, {const_cast<std::byte*>(message.content.data()), message.content.size()}};
    msghdr packet{};
    packet.msg_iov = parts;
    packet.msg_iovlen = 2;
    ssize_t sent;
    do sent = sendmsg(socket, &packet, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

Received receive_message(int socket, int timeout_ms, Message& message) {
    pollfd waiting{socket, POLLIN, 0};
    const int ready = poll(&waiting, 1, timeout_ms);
    if (ready == 0 || (ready < 0 && errno == EINTR)) return Received::nothing_yet;
    Header header{};
    message.content.resize(largest_message);
    iovec parts[2] = {{&header, sizeof header}, {message.content.data(), message.content.size()}};
    msghdr packet{};
    packet.msg_iov = parts;
    packet.msg_iovlen = 2;
    const ssize_t got = recvmsg(socket, &packet, 0);
    if (got < 0 && errno == EINTR) return Received::nothing_yet;
    if (got < static_cast<ssize_t>(sizeof header)) return Received::gone;
    message.kind = header.kind;
    message.shared_bytes = header.shared_bytes;
    message.content.resize(static_cast<std::size_t>(got) - sizeof header);
    return Received::message;
}

bool is_gone(int socket) {
    pollfd state{socket, 0, 0};
    return poll(&state, 1, 0) > 0 && (state.revents & (POLLHUP | POLLERR)) != 0;
}

}  // namespace decipher
