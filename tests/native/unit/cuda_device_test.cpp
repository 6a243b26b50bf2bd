// The device of drt_cuda_params.device is the one that is used, for all that is made on it, also in a worker.
#include "cuda_device.hpp"

#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <map>
#include <new>
#include <thread>
#include <vector>

#include "check.hpp"
#include "error.hpp"
#include "patch_embed.hpp"
#include "played_cuda.hpp"
#include "worker_protocol.hpp"
#include "written_cubin.hpp"

using namespace decipher;

static bool without_memory = false;

// Where it inlines these, GCC 12 complains that malloc and delete do not go together.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
    void* const made = without_memory ? nullptr : std::malloc(bytes);
    if (made == nullptr) throw std::bad_alloc();
    return made;
}

[[gnu::noinline]] void operator delete(void* pointer) noexcept { std::free(pointer); }
[[gnu::noinline]] void operator delete(void* pointer, std::size_t) noexcept { std::free(pointer); }

namespace {

// Where the system looks, by LD_LIBRARY_PATH: the driver is no library of an application's folder.
constexpr const char* library = "libcuda.so.1";

drt_cuda_params on(int device) {
    drt_cuda_params params{};
    params.struct_size = sizeof params;
    params.device = device;
    return params;
}

Played& played() {
    void* driver = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    CHECK(driver != nullptr);
    const auto state = reinterpret_cast<decltype(&played_cuda)>(dlsym(driver, "played_cuda"));
    CHECK(state != nullptr);
    return *state();
}

void all_is_on_the_device(int ordinal, int architecture) {
    Played& state = played();
    {
        CudaDevice device(on(ordinal));
        CHECK(device.ordinal() == ordinal && device.architecture() == architecture);
        CHECK(state.retained[ordinal] == 1 && state.retained[1 - ordinal] == 0);
        CHECK(state.streams.at(device.stream()) == ordinal);
        DeviceBuffer left;
        {
            const CudaDevice::Current current(device);
            left = DeviceBuffer(device, 100);
            const DeviceBuffer gone(device, 50);
            CHECK(state.memory.size() == 2);
            for (const auto& [address, owner] : state.memory) CHECK(owner == ordinal);
        }
        CHECK(state.memory.size() == 1 && state.current == 0);
        std::thread([&left] { left = DeviceBuffer(); }).join();  // in a thread without a context
        CHECK(state.memory.empty());
    }
    CHECK(state.retained[ordinal] == 0 && state.streams.empty() && state.current == 0 && state.wrong.empty());
}

// The played driver knows no function of a module.
void what_fails_half_way_leaves_nothing() {
    Played& state = played();
    state.refuses_streams = true;
    CHECK(CHECK_ERROR(CudaDevice(on(1)), DRT_ERROR_MEMORY).find("cuStreamCreateWithPriority") == 0);
    state.refuses_streams = false;
    CHECK(state.retained[1] == 0);
    const std::string launch =
        R"({"schema": "decipher-rt/kernels/1", "kernels": [{"kernel": "patch_embed3d", "architecture": "sm_89", "entry": "patch_embed",
            "cubin": "any.cubin", "threads": 128, "shared_memory_bytes": 0, "raise_shared_memory_limit": false, "arguments": [],
            "grid": [{"times": 1, "block": 1, "size": null}, {"times": 1, "block": 1, "size": null}, {"times": 1, "block": 1, "size": null}]}]})";
    const auto* const text = reinterpret_cast<const std::byte*>(launch.data());
    Bundle bundle;
    bundle.files["kernels/kernels.json"].assign(text, text + launch.size());
    const std::string code = cubin();
    const auto* const bytes = reinterpret_cast<const std::byte*>(code.data());
    bundle.files["kernels/any.cubin"].assign(bytes, bytes + code.size());
    CudaDevice device(on(1));
    const CudaDevice::Current current(device);
    CHECK(CHECK_ERROR(PatchEmbed(bundle, device), DRT_ERROR_ENGINE).find("cuModuleGetFunction") == 0);
    CHECK(state.modules == 0 && state.wrong.empty());
}

void voxels_are_read_back_on_the_stream() {
    Played& state = played();
    {
        CudaDevice device(on(1));
        const std::string voxels = "voxels";
        std::string read(voxels.size(), ' ');
        device.read_back(read.data(), voxels.data(), voxels.size());
        CHECK(read == voxels && state.waiting.empty());
    }
    CHECK(state.current == 0 && state.wrong.empty());
}

// Who gave the stream can wait for it, and puts what comes next on it; nobody else can.
void what_is_copied_lies_on_the_stream() {
    Played& state = played();
    CudaDevice ours(on(1));
    const DeviceBuffer to(ours, 4), from(ours, 4);
    std::memcpy(from.pointer(), "said", 4);
    ours.copy(to.pointer(), from.pointer(), 4);
    CHECK(state.waiting.empty() && std::memcmp(to.pointer(), "said", 4) == 0);
    std::memcpy(from.pointer(), "more", 4);
    drt_cuda_params params = on(1);
    params.stream = ours.stream();
    const CudaDevice guest(params);
    guest.copy(to.pointer(), from.pointer(), 4);
    CHECK(state.waiting.size() == 1 && std::memcmp(to.pointer(), "said", 4) == 0);
    const CudaDevice::Current current(ours);
    CHECK(ours.driver().synchronize(ours.stream()) == CUDA_SUCCESS && std::memcmp(to.pointer(), "more", 4) == 0);
    int on_host = 0;
    CHECK(CHECK_ERROR(guest.copy(&on_host, from.pointer(), 4), DRT_ERROR_ARGUMENT).find("is not in device memory of the session") != std::string::npos);
    CHECK(state.wrong.empty());
}

void a_lost_device_says_so_at_once() {
    Played& state = played();
    {
        CudaDevice device(on(1));
        const DeviceBuffer voxels(device, 4);
        int to = 0;
        state.lost = true;
        const auto start = std::chrono::steady_clock::now();
        CHECK(CHECK_ERROR(device.read_back(&to, voxels.pointer(), sizeof to), DRT_ERROR_DEVICE_LOST).find("open a new session") != std::string::npos);
        CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(100));
    }
    state.lost = false;
    state.waiting.clear();
    CHECK(state.memory.empty() && state.retained[1] == 0 && state.current == 0 && state.wrong.empty());
}

void a_callers_context_says_which_device() {
    Played& state = played();
    CudaDevice owner(on(1));
    {
        const CudaDevice::Current current(owner);
        CUcontext theirs = nullptr;
        CHECK(owner.driver().pop_context(&theirs) == CUDA_SUCCESS && owner.driver().push_context(theirs) == CUDA_SUCCESS);
        drt_cuda_params params = on(0);
        params.context = theirs;
        const CudaDevice guest(params);
        CHECK(guest.ordinal() == 1 && guest.architecture() == 89);
        CHECK(state.retained[0] == 0 && state.retained[1] == 1);
    }
    CHECK(state.wrong.empty());
}

void a_device_that_is_not_there_is_refused_in_a_line() {
    for (const int ordinal : {2, -1}) {
        const std::string said = CHECK_ERROR(CudaDevice(on(ordinal)), DRT_ERROR_ENGINE);
        CHECK(said.find("there is no CUDA device " + std::to_string(ordinal) + ", CUDA shows 2: 0 Played Turing, 1 Played Ada; set") == 0);
    }
    CHECK(played().retained[0] == 0 && played().retained[1] == 0);
}

// TensorRT asks in threads of its own, also in several at a time, which have no context.
void memory_is_given_and_taken_in_any_thread() {
    Played& state = played();
    {
        CudaDevice device(on(1));
        const auto work = [&device] {
            for (int i = 0; i < 20'000; ++i) {
                void* first = device.allocate(64, 1);
                void* second = device.allocate(32, 1);
                CHECK(first != nullptr && second != nullptr);
                device.deallocate(second, device.stream());
                device.deallocate(first);
            }
            CHECK(device.allocate(16, 1) != nullptr);
        };
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; ++i) threads.emplace_back(work);
        for (std::thread& thread : threads) thread.join();
        CHECK(device.bytes() >= 64 + 32 && device.bytes() <= 4 * (64 + 32 + 16));  // at a time, not in all
        CHECK(state.memory.size() == 4);
        for (const auto& [address, owner] : state.memory) CHECK(owner == 1);
        device.seal();
        CHECK(device.allocate(1, 1) == nullptr);
    }
    CHECK(state.memory.empty() && state.current == 0 && state.wrong.empty());
}

// A pool gives memory to others at once: what lies on the stream must be done with it before.
void a_callers_memory_goes_back_when_nothing_uses_it() {
    Played& state = played();
    static std::size_t back = 0;
    drt_cuda_params params = on(0);
    params.user_data = &state;
    params.allocate = [](void*, std::size_t bytes, std::size_t) { return std::malloc(bytes); };
    params.deallocate = [](void* user_data, void* pointer, std::size_t bytes) {
        CHECK(static_cast<Played*>(user_data)->waiting.empty());
        back += bytes;
        std::free(pointer);
    };
    {
        CudaDevice device(params);
        float to[4], *from = static_cast<float*>(device.allocate(sizeof to, 1));
        {
            const CudaDevice::Current current(device);
            const auto address = reinterpret_cast<CUdeviceptr>(from);
            CHECK(device.driver().download(to, address, sizeof to, device.stream()) == CUDA_SUCCESS && state.waiting.size() == 1);
        }
        device.deallocate(from, device.stream());
        CHECK(back == sizeof to);
        CHECK(device.allocate(8, 1) != nullptr);
        {
            const DeviceBuffer buffer(device, sizeof to);
            const CudaDevice::Current current(device);
            buffer.download(to, sizeof to);
            CHECK(state.waiting.size() == 1);
        }
        CHECK(back == 2 * sizeof to);
    }
    CHECK(back == 8 * sizeof(float) + 8 && state.current == 0 && state.wrong.empty());
}

void a_host_without_memory_gets_none_of_the_device() {
    static int given = 0;
    drt_cuda_params params = on(0);
    params.allocate = [](void*, std::size_t bytes, std::size_t) { return ++given, std::malloc(bytes); };
    params.deallocate = [](void*, void* pointer, std::size_t) { --given, std::free(pointer); };
    CudaDevice device(params);
    without_memory = true;
    void* const pointer = device.allocate(64, 1);
    without_memory = false;
    CHECK(pointer == nullptr && given == 0 && device.bytes() == 0);
}

// The driver reads on until what the file says of itself ends.
void a_cubin_that_is_not_whole_is_refused() {
    Elf64_Shdr section{}, shared{};
    section.sh_type = SHT_PROGBITS, section.sh_offset = sizeof(Elf64_Ehdr), section.sh_size = 2 * sizeof section + 4;
    shared.sh_type = SHT_NOBITS, shared.sh_size = 1 << 20;
    const std::string whole = cubin({section, shared});
    const auto check = [](const std::string& content) { check_cubin("any.cubin", std::as_bytes(std::span(content))); };
    check(whole);
    for (const std::size_t size : {std::size_t{0}, std::size_t{3}, sizeof(Elf64_Ehdr), sizeof(Elf64_Ehdr) + sizeof section, whole.size() - 1})
        CHECK(CHECK_ERROR(check(whole.substr(0, size)), DRT_ERROR_BUNDLE).find("any.cubin: is not a whole cubin") == 0);
    CHECK_ERROR(check("//\n// a PTX text, whatever it holds, that is longer than the header of an ELF file\n"), DRT_ERROR_BUNDLE);
    section.sh_offset = ~std::uint64_t{0} - 3;
    CHECK_ERROR(check(cubin({section})), DRT_ERROR_BUNDLE);
}

void a_cubin_with_a_suffix_serves_its_own_card_alone() {
    const std::vector<std::string> known = {"sm_75", "sm_120a", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "other"};
    const std::map<int, std::string> expected = {{75, "sm_75"}, {80, "sm_80"}, {87, "sm_86"}, {88, "sm_86"}, {89, "sm_89"}, {90, "sm_90a"},
                                                 {100, "sm_100a"}, {103, ""}, {120, "sm_120a"}, {121, ""}, {72, ""}, {0, ""}};
    for (const auto& [card, architecture] : expected) CHECK(serving_architecture(known, card) == architecture);
}

void a_driver_older_than_a_kernel_is_told_what_it_needs() {
    const CudaDevice device(on(0));
    CHECK(device.version() == 12040);
    for (const char* good : {"", "12.0", "12.4"}) check_driver("patch_embed3d", good, device.version());
    // A host whose numbers have dots between their thousands.
    struct Grouping : std::numpunct<char> {
        char do_decimal_point() const override { return ','; }
        char do_thousands_sep() const override { return '.'; }
        std::string do_grouping() const override { return "\3"; }
    };
    const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Grouping));
    check_driver("patch_embed3d", "12.0", device.version());
    std::locale::global(before);
    for (const std::string newer : {"12.5", "12.10", "13.0"}) {
        const std::string said = CHECK_ERROR(check_driver("patch_embed3d", newer, device.version()), DRT_ERROR_ENGINE);
        CHECK(said.find("patch_embed3d needs a driver of CUDA " + newer + " or later, this one is of CUDA 12.4: update") != std::string::npos);
    }
}

void a_worker_is_told_the_device() {
    SessionOptions options;
    options.cuda = on(1);
    options.cuda->priority = -2;
    ByteWriter writer;
    put_options(writer, options);
    ByteReader reader(writer.bytes());
    const SessionOptions heard = get_options(reader);
    CHECK(heard.cuda && heard.cuda->device == 1 && heard.cuda->priority == -2);
}

}  // namespace

int main() {
    all_is_on_the_device(0, 75);
    all_is_on_the_device(1, 89);
    what_fails_half_way_leaves_nothing();
    voxels_are_read_back_on_the_stream();
    what_is_copied_lies_on_the_stream();
    a_lost_device_says_so_at_once();
    a_callers_context_says_which_device();
    a_device_that_is_not_there_is_refused_in_a_line();
    memory_is_given_and_taken_in_any_thread();
    a_callers_memory_goes_back_when_nothing_uses_it();
    a_host_without_memory_gets_none_of_the_device();
    a_cubin_that_is_not_whole_is_refused();
    a_cubin_with_a_suffix_serves_its_own_card_alone();
    a_driver_older_than_a_kernel_is_told_what_it_needs();
    a_worker_is_told_the_device();
}
