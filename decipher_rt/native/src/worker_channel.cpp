#include "worker_channel.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "error.hpp"
#include "file_limit.hpp"

namespace decipher {

namespace {

constexpr std::size_t control_bytes = std::size_t{1} << 16;  // the largest page that Linux has: where a mapping can begin
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
    if (fcntl(memory.descriptor(), F_ADD_SEALS, F_SEAL_SHRINK) != 0) throw system_error("shared memory cannot be made");
    memory.grow(control_bytes);
    memory.control_ = memory.map(0, control_bytes);
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
    // A file of somebody else's must not be written to.
    if (const int seals = fcntl(memory.descriptor(), F_GET_SEALS); seals < 0 || (seals & F_SEAL_SHRINK) == 0)
        throw Error(DRT_ERROR_INTERNAL, "this is not the memory that a host shares with its worker");
    memory.control_ = memory.map(0, control_bytes);
    return memory;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : descriptor_(std::move(other.descriptor_)), control_(std::exchange(other.control_, {})), area_(std::exchange(other.area_, {})) {}

SharedMemory::~SharedMemory() {
    for (const std::span<std::byte> mapped : {control_, area_})
        if (!mapped.empty()) munmap(mapped.data(), mapped.size());
}

std::span<std::byte> SharedMemory::area(std::size_t bytes) {
    if (bytes > area_.size()) {
        const std::size_t size = (bytes + growth_bytes - 1) / growth_bytes * growth_bytes;
        grow(control_bytes + size);
        const std::span<std::byte> larger = map(control_bytes, size);
        if (!area_.empty()) munmap(area_.data(), area_.size());
        area_ = larger;
    }
    return area_.first(bytes);
}

std::size_t SharedMemory::room() const {
    struct stat now {};
    if (fstat(descriptor(), &now) != 0) throw system_error("shared memory cannot be measured");
    return static_cast<std::size_t>(now.st_size) - control_bytes;
}

std::span<std::byte> SharedMemory::map(std::size_t offset, std::size_t bytes) const {
    void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor(), static_cast<off_t>(offset));
    if (address == MAP_FAILED) throw system_error("shared memory cannot be mapped");
    return {static_cast<std::byte*>(address), bytes};
}

// The pages are taken here: where one is not to be had, touching it would kill who does. In pieces, as a signal makes the
// kernel begin anew with each.
void SharedMemory::grow(std::size_t bytes) const {
    if (bytes > largest_file())
        throw Error(DRT_ERROR_MEMORY, "shared memory cannot grow to " + std::to_string(bytes) + " bytes: this process may make files of " +
                                          std::to_string(largest_file()) + "; raise RLIMIT_FSIZE");
    struct stat now {};
    if (fstat(descriptor(), &now) != 0) throw system_error("shared memory cannot be measured");
    for (auto at = static_cast<std::size_t>(now.st_size); at < bytes; at += growth_bytes)
        while (fallocate(descriptor(), 0, static_cast<off_t>(at), static_cast<off_t>(std::min(growth_bytes, bytes - at))) != 0)
            if (errno != EINTR) throw system_error("shared memory cannot grow to " + std::to_string(bytes) + " bytes");
}

bool send_message(int socket, const Message& message) {
    if (message.content.size() > largest_message)
        throw argument_error("what the worker process must be told takes " + std::to_string(message.content.size()) +
                             " bytes, it reads " + std::to_string(largest_message) +
                             ": shorten the paths, the list of heads, or modality and body part");
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
