// A session on a GPU, which is played: what is enqueued, and voxels in device memory. Also played is how slowly a thread that
// was begun comes back to who began it.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <semaphore>
#include <thread>

#include "api.hpp"
#include "check.hpp"
#include "sample.hpp"

using namespace decipher;
using namespace std::chrono_literals;

namespace {

constexpr auto read_back_time = 20ms;
std::atomic<bool> slow{false}, ended{false};
bool takes_signals = false;  // the thread that was begun last

class PlayedGpu : public Gpu {
public:
    std::string engine() const override { return "played"; }
    std::string device() const override { return "cuda:0"; }
    std::vector<std::string> files(const Manifest&, const Sums&, std::string_view) const override { return {}; }
    std::unique_ptr<Graph> load(const Bundle&, std::string_view) override { return nullptr; }
    std::uint64_t device_bytes() const override { return 0; }
    void read_back(void* to, const void* from, std::size_t bytes) const override {
        std::this_thread::sleep_for(read_back_time);
        std::memcpy(to, from, bytes);
    }
    void copy_output(const std::string& output, void* to, std::size_t bytes) const override {
        CHECK(bytes == (output == "patch" ? patch.size() : embedding.size()) * sizeof(float));
        std::memcpy(to, output == "patch" ? patch.data() : embedding.data(), bytes);
    }

    const std::vector<float> patch = {1, 2, 3, 4}, embedding = {5, 6};  // as they lie on the card
};

class PlayedBackend : public Backend {
public:
    const Description& description() const override { return description_; }
    Result run(const SeriesForm& form, const VolumeView&) override {
        if (form.header.modality == "CT") throw Error(DRT_ERROR_DEVICE_LOST, "the card fell out");
        Result result;
        result.patch = gpu_.patch;
        result.embedding = gpu_.embedding;
        return result;
    }
    std::unique_ptr<Arrival> begin(const SeriesForm&) override { return nullptr; }
    void warm_up() override {}
    Gpu& gpu() const override { return gpu_; }

private:
    Description description_;
    mutable PlayedGpu gpu_;
};

drt_session played_session() {
    drt_session session;
    session.backend = std::make_unique<PlayedBackend>();
    return session;
}

// A host waits for a run in a thread that the callback wakes up, whether or not the call that enqueued it has returned.
void a_run_that_has_ended_is_waited_for(const Sample& sample) {
    drt_session session = played_session();
    std::binary_semaphore done(0);
    std::thread waiter([&] {
        done.acquire();
        CHECK(drt_session_wait(&session) == DRT_OK);
        std::size_t size = 0;
        CHECK(drt_embedding(&session, nullptr, 0, &size) == DRT_OK);
    });
    slow = true;
    const auto wake = [](void* data, drt_status status) {
        CHECK(status == DRT_OK);
        ended = true;
        static_cast<std::binary_semaphore*>(data)->release();
    };
    CHECK(drt_session_enqueue(&session, &sample.volume, wake, &done) == DRT_OK && !takes_signals);
    slow = false;
    waiter.join();
    CHECK(drt_session_run(&session, &sample.volume) == DRT_OK);  // nothing is enqueued any more
}

void a_failure_is_told_to_who_waits(const Sample& sample) {
    drt_session session = played_session();
    drt_volume other = sample.volume;
    other.modality = "CT";
    CHECK(drt_session_enqueue(&session, &other, nullptr, nullptr) == DRT_OK);
    CHECK(drt_session_wait(&session) == DRT_ERROR_DEVICE_LOST && std::strcmp(drt_last_error(), "the card fell out") == 0);
    CHECK(drt_session_wait(&session) == DRT_OK);  // there is nothing more to wait for
    CHECK(drt_session_enqueue(&session, &sample.volume, nullptr, nullptr) == DRT_OK && drt_session_wait(&session) == DRT_OK);
}

void outputs_go_to_device_memory(const Sample& sample) {
    drt_session session = played_session();
    std::size_t size = 0;
    float to[5] = {0, 0, 0, 0, 9};
    CHECK(drt_patch_tokens_on_device(&session, to, 5, &size) == DRT_ERROR_NO_RESULT);
    CHECK(drt_session_run(&session, &sample.volume) == DRT_OK);
    CHECK(drt_patch_tokens_on_device(&session, nullptr, 0, &size) == DRT_OK && size == 4);
    CHECK(drt_patch_tokens_on_device(&session, to, 3, &size) == DRT_ERROR_BUFFER_SIZE && to[0] == 0);
    CHECK(drt_patch_tokens_on_device(&session, to, 5, &size) == DRT_OK && to[0] == 1 && to[3] == 4 && to[4] == 9);
    CHECK(drt_embedding_on_device(&session, to, 2, &size) == DRT_OK && size == 2 && to[0] == 5 && to[1] == 6);
}

void reading_back_counts_as_preprocessing(const Sample& sample) {
    drt_session session = played_session();
    drt_volume on_device = sample.volume;
    on_device.memory = DRT_CUDA_MEMORY;
    CHECK(drt_session_run(&session, &on_device) == DRT_OK);
    drt_times times{};
    times.struct_size = sizeof times;
    CHECK(drt_times_of_result(&session, &times) == DRT_OK);
    CHECK(times.preprocess_ms >= 20 && times.total_ms >= times.preprocess_ms);
}

}  // namespace

// A machine so busy that a new thread has done its work before this returns; not for ever, if it waits for us.
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*routine)(void*), void* argument) {
    static const auto system_s = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    takes_signals = sigismember(&blocked, SIGTERM) == 0;
    const int failed = system_s(thread, attributes, routine, argument);
    for (int i = 0; slow && !ended && i < 200; ++i) std::this_thread::sleep_for(1ms);
    if (slow) std::this_thread::sleep_for(20ms);  // for who waits
    return failed;
}

int main() {
    const Sample sample;
    a_run_that_has_ended_is_waited_for(sample);
    a_failure_is_told_to_who_waits(sample);
    outputs_go_to_device_memory(sample);
    reading_back_counts_as_preprocessing(sample);
}
