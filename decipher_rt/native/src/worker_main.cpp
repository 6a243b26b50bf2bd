// decipher-rt-worker: does for a host, in a process of its own, what the library would do in the host's.

#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>

#include "backend.hpp"
#include "heaps.hpp"
#include "worker_channel.hpp"
#include "worker_process.hpp"
#include "worker_protocol.hpp"

using namespace decipher;

namespace {

class Service {
public:
    Service() : memory_(SharedMemory::attach(Descriptor(worker_memory))) { memory_.hold_life(); }

    // Until the host closes its end.
    void serve() {
        for (Message request; receive(request);) {
            try {
                answer(request);
            } catch (...) {
                const drt_status status = remember_current();
                ByteWriter writer;
                writer.put(status);
                writer.put(std::string(last_error()));
                send_message(worker_socket, {MessageKind::failure, 0, writer.bytes()});
            }
        }
    }

private:
    static bool receive(Message& message) {
        Received received;
        do received = receive_message(worker_socket, -1, message);
        while (received == Received::nothing_yet);
        return received == Received::message;
    }

    void answer(const Message& request) {
        ByteReader reader(request.content);
        switch (request.kind) {
            case MessageKind::open: {
                SessionOptions options = get_options(reader);
                options.callbacks = callbacks();
                make_room_in_heaps();
                backend_ = make_in_process(options);
                ByteWriter writer;
                put_description(writer, backend_->description());
                return reply(writer);
            }
            case MessageKind::run: {
                const SeriesForm form = get_form(reader);
                const auto voxels = memory_.area(form.voxels() * bytes_of(form.stored));
                return reply_result(backend_->run(form, {voxels.data(), contiguous(form)}));
            }
            case MessageKind::warm_up: {
                backend_->warm_up();
                return reply({});
            }
            case MessageKind::begin: {
                const SeriesForm form = get_form(reader);
                series_[++last_series_] = {form, backend_->begin(form)};
                ByteWriter writer;
                writer.put(last_series_);
                send_message(worker_socket, {MessageKind::reply, 0, writer.bytes()});
                return;
            }
            default: return answer_series(request.kind, reader);
        }
    }

    void answer_series(MessageKind kind, ByteReader& reader) {
        const auto number = reader.get<std::uint64_t>();
        if (kind == MessageKind::free_series) {
            series_.erase(number);
            return reply({});
        }
        auto& [form, arrival] = series_.at(number);
        if (kind == MessageKind::finish) return reply_result(arrival->finish());
        ByteWriter writer;
        if (kind == MessageKind::push) {
            const auto strides = contiguous(form);
            arrival->push({memory_.area(form.slice_voxels() * bytes_of(form.stored)).data(), strides[1], strides[2]}, reader.get<Vector>());
        } else {
            writer.put(arrival->missing());
        }
        reply(writer);
    }

    static std::array<std::int64_t, 3> contiguous(const SeriesForm& form) {
        const auto size = static_cast<std::int64_t>(bytes_of(form.stored));
        return {size * form.shape[1] * form.shape[2], size * form.shape[2], size};
    }

    void reply(const ByteWriter& writer) {
        const auto& bytes = writer.bytes();
        std::copy(bytes.begin(), bytes.end(), memory_.area(bytes.size()).begin());
        send_message(worker_socket, {MessageKind::reply, bytes.size(), {}});
    }

    void reply_result(const Result& result) {
        ByteWriter writer;
        put_result(writer, result);
        reply(writer);
    }

    Callbacks callbacks() {
        Callbacks forward;
        forward.user_data = this;
        forward.log = [](void*, drt_log_level level, const char* message) {
            ByteWriter writer;
            writer.put(level);
            writer.put(std::string(message).substr(0, largest_message / 2));
            send_message(worker_socket, {MessageKind::log, 0, writer.bytes()});
        };
        forward.progress = [](void*, drt_stage stage, double fraction) {
            ByteWriter writer;
            writer.put(stage);
            writer.put(fraction);
            send_message(worker_socket, {MessageKind::progress, 0, writer.bytes()});
        };
        // Also when the host is gone: nobody waits for the answer.
        forward.cancel = [](void* self) -> int {
            return static_cast<Service*>(self)->memory_.cancel() != 0 || is_gone(worker_socket);
        };
        return forward;
    }

    SharedMemory memory_;
    std::unique_ptr<Backend> backend_;
    struct Begun {
        SeriesForm form;
        std::unique_ptr<Arrival> arrival;
    };
    std::map<std::uint64_t, Begun> series_;
    std::uint64_t last_series_ = 0;
};

// A program that was started by somebody else has other things under these numbers.
bool is_started_by_host() {
    int kind = 0;
    socklen_t size = sizeof kind;
    return getsockopt(worker_socket, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 && kind == SOCK_SEQPACKET;
}

}  // namespace

int main() {
    if (!is_started_by_host()) return 1;
#if defined(SYS_close_range)
    syscall(SYS_close_range, worker_memory + 1, ~0U, 0);  // what the host had open is none of the worker's business
#endif
    return guarded([] { Service().serve(); }) == DRT_OK ? 0 : 1;
}
