// A worker process and the memory that it shares, without the work: this program is its own worker. How an end is noticed,
// waited for, and left to whom it belongs; what a worker gone mad says.
#include "worker_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "decipher_rt.h"
#include "error.hpp"
#include "worker_client.hpp"
#include "worker_protocol.hpp"

using namespace decipher;
using namespace std::chrono_literals;

// A worker that waits within the kernel for a device, which no signal ends.
static bool workers_end = true;

int poll(pollfd* looked_at, nfds_t count, int timeout_ms) {
    const timespec timeout{timeout_ms / 1000, timeout_ms % 1000 * 1'000'000L};
    return ppoll(looked_at, workers_end ? count : 0, timeout_ms < 0 ? nullptr : &timeout, nullptr);
}

// A kernel that gives descriptors of processes and does not wait for them, as Linux 5.3 is, and some sandboxes are.
static bool waits_for_descriptors = true;

int waitid(idtype_t kind, id_t number, siginfo_t* ended, int options) {
    if (kind == static_cast<idtype_t>(3) && !waits_for_descriptors) {
        errno = EINVAL;
        return -1;
    }
    if (!workers_end) return ended->si_pid = 0;
    return static_cast<int>(syscall(SYS_waitid, kind, number, ended, options, nullptr));
}

namespace {

constexpr std::size_t large = std::size_t{8} << 20;
constexpr std::byte ended{1};

// Opens as a worker does; whatever it is asked then, its answer makes no sense.
void answer_madly(const Message& request, SharedMemory& memory) {
    ByteReader reader(request.content);
    ByteWriter writer;
    switch (request.kind) {
        case MessageKind::open: {
            Description description;
            std::ifstream file(get_options(reader).bundle + "/manifest.json");
            description.manifest_text.assign(std::istreambuf_iterator<char>(file), {});
            put_description(writer, description);
            std::copy(writer.bytes().begin(), writer.bytes().end(), memory.area(writer.bytes().size()).begin());
            send_message(worker_socket, {MessageKind::reply, writer.bytes().size(), {}});
            return;
        }
        case MessageKind::warm_up:
            writer.put(drt_status{DRT_OK});
            writer.put(std::string("it failed well"));
            send_message(worker_socket, {MessageKind::failure, 0, writer.bytes()});
            return;
        default: send_message(worker_socket, {MessageKind::reply, 0, {}});  // with nothing in it
    }
}

// Answers with what it hears, or madly. When the host has closed its end it takes its time, and says that it was not killed.
int play_worker() {
    SharedMemory memory = SharedMemory::attach(Descriptor(worker_memory));
    memory.hold_life();
    std::byte& said = memory.area(large)[0];
    Received received;
    for (Message message; (received = receive_message(worker_socket, -1, message)) != Received::gone;)
        if (received == Received::message && message.kind == MessageKind::missing)
            send_message(worker_socket, message);
        else if (received == Received::message)
            answer_madly(message, memory);
    std::this_thread::sleep_for(200ms);
    said = ended;
    return 0;
}

struct Played {
    SharedMemory memory = SharedMemory::create();
    std::unique_ptr<WorkerProcess> process = std::make_unique<WorkerProcess>("/proc/self/exe", memory.descriptor());

    Played() { CHECK(answers()); }

    bool answers() const {
        Message message{MessageKind::missing, 0, {}};
        return send_message(process->socket(), message) && receive_message(process->socket(), 10'000, message) == Received::message;
    }
    bool ended_by_itself() { return memory.area(1)[0] == ended; }
};

void an_answer_without_sense_is_a_loss(const std::string& bundle) {
    SessionOptions options;
    options.bundle = bundle;
    const double affine[16] = {2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1};
    const std::int64_t shape[3] = {2, 4, 4};
    const std::byte voxels[32]{};
    const SeriesForm form = check_form(DRT_UINT8, shape, affine, 1, 0, {});
    const auto lost = [&](auto&& ask) {
        const auto worker = make_worker(options, "/proc/self/exe", 0);
        CHECK(CHECK_ERROR(ask(*worker), DRT_ERROR_WORKER_LOST).find("nonsense") != std::string::npos);
        CHECK(CHECK_ERROR(worker->warm_up(), DRT_ERROR_WORKER_LOST).find("is lost") != std::string::npos);
    };
    lost([](Backend& worker) { worker.warm_up(); });
    lost([&](Backend& worker) { worker.run(form, {voxels, {16, 4, 1}}); });
    lost([&](Backend& worker) { worker.begin(form); });
    options.bundle = "/nonexistent";  // the manifest of which is empty
    CHECK_ERROR(make_worker(options, "/proc/self/exe", 0), DRT_ERROR_WORKER_LOST);
}

void memory_is_taken_when_it_grows() {
    SharedMemory memory = SharedMemory::create();
    memory.area(large);
    struct stat state {};
    CHECK(fstat(memory.descriptor(), &state) == 0);
    CHECK(static_cast<std::size_t>(state.st_blocks) * 512 >= large && memory.room() >= large);
}

void death_is_noticed_at_once() {
    Played played;
    CHECK(!played.memory.is_life_lost());
    played.process->kill();
    siginfo_t death{};
    CHECK(waitid(P_PID, static_cast<id_t>(played.process->pid()), &death, WEXITED | WNOWAIT) == 0);
    CHECK(played.memory.is_life_lost());
}

void signals_do_not_cut_the_end_short() {
    struct sigaction action {}, before {};
    action.sa_handler = [](int) {};
    CHECK(sigaction(SIGALRM, &action, &before) == 0);
    Played played;
    const pid_t pid = played.process->pid();
    const itimerval often{{0, 5000}, {0, 5000}}, never{};
    setitimer(ITIMER_REAL, &often, nullptr);
    played.process.reset();
    setitimer(ITIMER_REAL, &never, nullptr);
    CHECK(played.ended_by_itself());
    CHECK(waitpid(pid, nullptr, WNOHANG) < 0 && errno == ECHILD);
    sigaction(SIGALRM, &before, nullptr);
}

void a_worker_that_the_host_has_reaped_is_not_waited_for() {
    Played played;
    played.process->kill();
    CHECK(waitpid(played.process->pid(), nullptr, 0) > 0);
    const auto start = std::chrono::steady_clock::now();
    played.process.reset();
    CHECK(std::chrono::steady_clock::now() - start < 1s);
}

void only_an_end_is_an_end() {
    waits_for_descriptors = false;
    Played played;
    const pid_t pid = played.process->pid();
    played.process.reset();
    CHECK(played.ended_by_itself());
    CHECK(waitpid(pid, nullptr, WNOHANG) < 0 && errno == ECHILD);
    waits_for_descriptors = true;
}

void a_worker_that_cannot_be_ended_is_not_waited_for_for_ever() {
    Played played;
    const pid_t pid = played.process->pid();
    workers_end = false;
    const auto start = std::chrono::steady_clock::now();
    played.process.reset();
    workers_end = true;
    CHECK(std::chrono::steady_clock::now() - start < 11s);
    CHECK(waitpid(pid, nullptr, 0) == pid);
}

void forked_children_change_nothing() {
    Played played;
    const pid_t closer = fork();
    if (closer == 0) {
        played.process.reset();
        _exit(0);
    }
    CHECK(waitpid(closer, nullptr, 0) == closer && played.answers());
    const pid_t holder = fork();
    if (holder == 0) {
        pause();
        _exit(0);
    }
    const auto start = std::chrono::steady_clock::now();
    played.process.reset();
    CHECK(std::chrono::steady_clock::now() - start < 1500ms && played.ended_by_itself());
    kill(holder, SIGKILL);
    CHECK(waitpid(holder, nullptr, 0) == holder);
}

// A host with few descriptors left, whose own files have the worker's numbers.
void the_hosts_files_stay_as_they_are() {
    constexpr std::size_t size = std::size_t{1} << 20;
    const pid_t host = fork();
    if (host == 0) {
        for (const int number : {worker_socket, worker_memory}) {
            char path[] = "/tmp/decipher-rt-host-XXXXXX";
            const int file = mkstemp(path);
            CHECK(file >= 0 && unlink(path) == 0 && ftruncate(file, size) == 0);
            if (file != number) CHECK(dup2(file, number) == number);
        }
        const rlimit few{64, 64};
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        std::vector<Descriptor> taken;
        for (int file; (file = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;) taken.emplace_back(file);
        for (int left = 0; left < 8; ++left) {
            std::string message;
            try {
                const Played played;
            } catch (const Error& error) {
                message = error.what();
            }
            CHECK(message.empty() == (left >= 5));
            CHECK(message.empty() || message.find("Too many open files") != message.npos);
            taken.pop_back();
        }
        std::vector<char> bytes(size);
        for (const int number : {worker_socket, worker_memory}) {
            CHECK(pread(number, bytes.data(), size, 0) == static_cast<ssize_t>(size));
            CHECK(bytes == std::vector<char>(size));
        }
        std::exit(0);
    }
    int status = 0;
    CHECK(waitpid(host, &status, 0) == host && status == 0);
}

// The signal that comes where a file would be too large ends who does not expect it.
void memory_grows_up_to_the_limit() {
    const pid_t host = fork();
    if (host == 0) {
        SharedMemory memory = SharedMemory::create();
        const rlimit small{large, large};
        CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
        CHECK(memory.area(large / 2).size() == large / 2);
        CHECK(CHECK_ERROR(memory.area(large), DRT_ERROR_MEMORY).find("RLIMIT_FSIZE") != std::string::npos);
        std::exit(0);
    }
    int status = 0;
    CHECK(waitpid(host, &status, 0) == host && status == 0);
}

void a_worker_of_another_build_is_refused() {
    ByteWriter writer;
    put_options(writer, {});
    ByteReader same(writer.bytes());
    get_options(same);
    std::vector<std::byte> other = writer.bytes();
    other[sizeof(std::uint64_t)] ^= std::byte{1};  // the first letter of what tells its build
    ByteReader reader(other);
    CHECK(CHECK_ERROR(get_options(reader), DRT_ERROR_ENGINE).find("of another build") != std::string::npos);
}

// Loaded by a relative name, as this program is when it starts itself so, and gone elsewhere before a worker is wanted.
int look_for_worker_elsewhere() {
    const std::filesystem::path begun = std::filesystem::current_path();
    CHECK(chdir("/") == 0);
    const SharedMemory memory = SharedMemory::create();
    const std::string message = CHECK_ERROR(WorkerProcess("", memory.descriptor()), DRT_ERROR_ENGINE);
    CHECK(message.find("neither in " + begun.string()) != message.npos);
    return 0;
}

void the_worker_is_looked_for_where_the_library_lies() {
    const pid_t host = fork();
    if (host == 0) {
        const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe");
        CHECK(chdir(self.parent_path().c_str()) == 0);
        const std::string name = "./" + self.filename().string();
        execl(name.c_str(), name.c_str(), "elsewhere", nullptr);
        _exit(1);
    }
    int status = 0;
    CHECK(waitpid(host, &status, 0) == host && status == 0);
}

void only_shared_memory_is_attached() {
    char path[] = "/tmp/decipher-rt-host-XXXXXX";
    const int file = mkstemp(path);
    CHECK(file >= 0 && unlink(path) == 0 && ftruncate(file, 1 << 20) == 0);
    CHECK_ERROR(SharedMemory::attach(Descriptor(file)), DRT_ERROR_INTERNAL);
}

}  // namespace

int main(int argc, char** argv) {
    if (std::string(argv[0]) == "decipher-rt-worker") return play_worker();
    if (std::string(argv[1] != nullptr ? argv[1] : "") == "elsewhere") return look_for_worker_elsewhere();
    CHECK(argc > 1);
    an_answer_without_sense_is_a_loss(argv[1]);
    memory_is_taken_when_it_grows();
    death_is_noticed_at_once();
    signals_do_not_cut_the_end_short();
    a_worker_that_the_host_has_reaped_is_not_waited_for();
    only_an_end_is_an_end();
    a_worker_that_cannot_be_ended_is_not_waited_for_for_ever();
    forked_children_change_nothing();
    only_shared_memory_is_attached();
    memory_grows_up_to_the_limit();
    the_worker_is_looked_for_where_the_library_lies();
    the_hosts_files_stay_as_they_are();
    a_worker_of_another_build_is_refused();
}
