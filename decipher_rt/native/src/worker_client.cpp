#include "worker_client.hpp"

#include <chrono>
#include <type_traits>
#include <utility>

#include "elapsed.hpp"
#include "parallel.hpp"
#include "worker_channel.hpp"
#include "worker_process.hpp"
#include "worker_protocol.hpp"

namespace decipher {

namespace {

constexpr int interval_ms = 5;  // how often the worker's life is felt, and the host's callback asked
constexpr const char* nonsense = "the worker process sent nonsense and was killed";

Error lost(const std::string& what) { return {DRT_ERROR_WORKER_LOST, what + "; open a new session"}; }

// Host and worker take turns: a call goes out, and nothing else happens until its reply has come.
class Worker : public Backend {
public:
    Worker(const SessionOptions& options, const std::string& path, std::uint32_t timeout_ms)
        : callbacks_(options.callbacks), timeout_(timeout_ms), memory_(SharedMemory::create()), process_(path, memory_.descriptor()) {
        const auto start = std::chrono::steady_clock::now();
        ByteWriter writer;
        put_options(writer, options);
        description_ = understood(shared(call({MessageKind::open, 0, writer.bytes()})), get_description);
        description_.threads = options.threads;  // the host's own, whatever a worker gone mad says
        if (options.heads) description_.manifest.keep_heads(*options.heads);
        description_.worker_pid = process_.pid();
        description_.open_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    }

    const Description& description() const override { return description_; }

    Result run(const SeriesForm& form, const VolumeView& volume) override {
        const std::size_t slice_bytes = form.slice_voxels() * bytes_of(form.stored);
        const std::span<std::byte> voxels = memory_.area(form.voxels() * bytes_of(form.stored));
        const auto start = std::chrono::steady_clock::now();
        parallel_for(static_cast<std::size_t>(form.shape[0]), description_.threads, [&](std::size_t i) {
            convert_slice(form, volume.slice(static_cast<std::int64_t>(i)), voxels.data() + i * slice_bytes);
        });
        const double converted_ms = milliseconds_since(start);
        Result result = result_of(call(with_form(MessageKind::run, form, voxels.size())), form);
        result.times.preprocess_ms += converted_ms;
        result.times.total_ms += converted_ms;
        return result;
    }

    std::unique_ptr<Arrival> begin(const SeriesForm& form) override;
    void warm_up() override { call({MessageKind::warm_up, 0, {}}); }

    Gpu& gpu() const override {
        throw Error(DRT_ERROR_UNSUPPORTED, "device pointers and streams do not reach a worker process: open the session in process");
    }

    // Where in process nobody asks whether to stop, nobody does here: what was asked for would be lost.
    enum class Stops { when_asked, never };

    Message call(const Message& request, Stops stops = Stops::when_asked) {
        if (!alive_) throw lost("the worker process is lost");
        if (!process_.is_own()) throw lost("the worker process is that of the process that forked this one");
        memory_.cancel() = 0;
        asked_to_stop_ = false;
        if (!send_message(process_.socket(), request)) give_up("the worker process died");
        Message answer = wait_for_answer(stops);
        if (answer.kind == MessageKind::reply && asked_to_stop_)  // it ended before it could be stopped
            throw Error(DRT_ERROR_CANCELLED, "cancelled while the worker ended its work");
        if (answer.kind == MessageKind::reply) return answer;
        throw understood(answer.content, [](ByteReader& reader) {
            const auto status = reader.get<drt_status>();
            if (status == DRT_OK) throw lost(nonsense);
            return Error(status, reader.get_text());
        });
    }

    // What an answer says. One that cannot be read ends the worker: whatever it said next could not be trusted.
    template <class Read>
    std::invoke_result_t<Read, ByteReader&> understood(std::span<const std::byte> said, Read&& read) try {
        ByteReader reader(said);
        return read(reader);
    } catch (const Error&) {
        give_up(nonsense);
    }

    Result result_of(const Message& reply, const SeriesForm& form) {
        Result result = understood(shared(reply), get_result);
        for (const Head& head : description_.manifest.heads)
            if (result.scope.inside && !result.heads.contains(head.name)) give_up(nonsense);
        // By these the caller's memory is written: they are the host's own, whatever a worker gone mad says.
        result.source = {form.shape, form.affine};
        return result;
    }

    std::span<const std::byte> shared(const Message& reply) {
        if (reply.shared_bytes > memory_.room()) give_up(nonsense);
        return memory_.area(static_cast<std::size_t>(reply.shared_bytes));
    }

    SharedMemory& memory() { return memory_; }

    static Message with_form(MessageKind kind, const SeriesForm& form, std::size_t shared_bytes) {
        ByteWriter writer;
        put_form(writer, form);
        return {kind, shared_bytes, writer.bytes()};
    }

private:
    // A reply or a failure. Whatever is thrown instead, by a callback too, ends the worker: its answer, still to come, would
    // be taken for that to the next call.
    Message wait_for_answer(Stops stops) try {
        auto heard = std::chrono::steady_clock::now();
        for (Message message;;) {
            const auto received = receive_message(process_.socket(), interval_ms, message);
            if (received == Received::gone || (received == Received::nothing_yet && memory_.is_life_lost()))
                throw lost("the worker process died");
            if (received == Received::nothing_yet) {
                const auto asking = std::chrono::steady_clock::now();
                if (timeout_.count() > 0 && asking - heard > timeout_)
                    throw lost("the worker process was silent for " + std::to_string(timeout_.count()) + " ms and was killed");
                if (stops == Stops::when_asked && callbacks_.cancelled()) memory_.cancel() = asked_to_stop_ = true;
                heard += std::chrono::steady_clock::now() - asking;  // that the host takes its time is no silence
                continue;
            }
            if (message.kind == MessageKind::reply || message.kind == MessageKind::failure) return message;
            pass_on(message);
            heard = std::chrono::steady_clock::now();
        }
    } catch (...) {
        end();
        throw;
    }

    void pass_on(const Message& message) {
        ByteReader reader(message.content);
        switch (message.kind) {
            case MessageKind::progress: {
                const auto stage = reader.get<drt_stage>();
                return callbacks_.report(stage, reader.get<double>());
            }
            case MessageKind::log: {
                const auto level = reader.get<drt_log_level>();
                return callbacks_.say(level, reader.get_text());
            }
            default: throw lost(nonsense);
        }
    }

    void end() {
        alive_ = false;
        process_.kill();
    }

    [[noreturn]] void give_up(const std::string& why) {
        end();
        throw lost(why);
    }

    Callbacks callbacks_;
    std::chrono::milliseconds timeout_;
    SharedMemory memory_;
    WorkerProcess process_;
    Description description_;
    bool alive_ = true, asked_to_stop_ = false;
};

class WorkerArrival : public Arrival {
public:
    WorkerArrival(Worker& worker, const SeriesForm& form) : worker_(worker), form_(form) {
        const Message reply = worker_.call(Worker::with_form(MessageKind::begin, form, 0), Worker::Stops::never);
        number_ = worker_.understood(reply.content, [](ByteReader& reader) { return reader.get<std::uint64_t>(); });
    }

    ~WorkerArrival() override {
        try {
            request(MessageKind::free_series, {}, 0, Worker::Stops::never);
        } catch (...) {  // a worker that is gone holds no series
        }
    }

    void push(const SliceView& slice, const Vector& position_lps_mm) override {
        const auto start = std::chrono::steady_clock::now();
        const std::span<std::byte> pixels = worker_.memory().area(form_.slice_voxels() * bytes_of(form_.stored));
        convert_slice(form_, slice, pixels.data());
        request(MessageKind::push, position_lps_mm, pixels.size(), Worker::Stops::never);
        arrival_ms_ += milliseconds_since(start);
    }

    std::vector<std::int64_t> missing() const override {
        const Message reply = request(MessageKind::missing, {}, 0, Worker::Stops::never);
        return worker_.understood(worker_.shared(reply), [](ByteReader& reader) { return reader.get_list<std::int64_t>(); });
    }

    Result finish() override {
        Result result = worker_.result_of(request(MessageKind::finish, {}, 0, Worker::Stops::when_asked), form_);
        result.times.arrival_ms = arrival_ms_;
        return result;
    }

private:
    Message request(MessageKind kind, const Vector& position, std::size_t shared_bytes, Worker::Stops stops) const {
        ByteWriter writer;
        writer.put(number_);
        writer.put(position);
        return worker_.call({kind, shared_bytes, writer.bytes()}, stops);
    }

    Worker& worker_;
    SeriesForm form_;
    double arrival_ms_ = 0;
    std::uint64_t number_ = 0;
};

std::unique_ptr<Arrival> Worker::begin(const SeriesForm& form) { return std::make_unique<WorkerArrival>(*this, form); }

}  // namespace

std::unique_ptr<Backend> make_worker(const SessionOptions& options, const std::string& path, std::uint32_t timeout_ms) {
    return std::make_unique<Worker>(options, path, timeout_ms);
}

}  // namespace decipher
