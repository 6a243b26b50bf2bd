// The device of drt_cuda_params.device is the one that is used, for all that is made on it, also in a worker.
#include "cuda_device.hpp"

#include <dlfcn.h>

#include <thread>

#include "check.hpp"
#include "error.hpp"
#include "played_cuda.hpp"
#include "worker_protocol.hpp"

using namespace decipher;

namespace {

const std::string folder = PLAYED_CUDA_FOLDER;

drt_cuda_params on(int device) {
    drt_cuda_params params{};
    params.struct_size = sizeof params;
    params.device = device;
    return params;
}

Played& played() {
    void* library = dlopen((folder + "/libcuda.so.1").c_str(), RTLD_NOW | RTLD_LOCAL);
    CHECK(library != nullptr);
    const auto state = reinterpret_cast<decltype(&played_cuda)>(dlsym(library, "played_cuda"));
    CHECK(state != nullptr);
    return *state();
}

void all_is_on_the_device(int ordinal, int architecture) {
    Played& state = played();
    {
        CudaDevice device(folder, on(ordinal));
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
        CHECK(state.memory.size() == 1 && state.current.empty());
        std::thread([&left] { left = DeviceBuffer(); }).join();  // in a thread without a context
        CHECK(state.memory.empty());
    }
    CHECK(state.retained[ordinal] == 0 && state.streams.empty() && state.current.empty() && state.wrong.empty());
}

void voxels_are_read_back_on_the_stream() {
    Played& state = played();
    {
        CudaDevice device(folder, on(1));
        const std::string voxels = "voxels";
        std::string read(voxels.size(), ' ');
        device.read_back(read.data(), voxels.data(), voxels.size());
        CHECK(read == voxels && state.waiting.empty());
    }
    CHECK(state.current.empty() && state.wrong.empty());
}

void a_callers_context_says_which_device() {
    Played& state = played();
    CudaDevice owner(folder, on(1));
    {
        const CudaDevice::Current current(owner);
        CUcontext theirs = nullptr;
        CHECK(owner.driver().pop_context(&theirs) == CUDA_SUCCESS && owner.driver().push_context(theirs) == CUDA_SUCCESS);
        drt_cuda_params params = on(0);
        params.context = theirs;
        const CudaDevice guest(folder, params);
        CHECK(guest.ordinal() == 1 && guest.architecture() == 89);
        CHECK(state.retained[0] == 0 && state.retained[1] == 1);
    }
    CHECK(state.wrong.empty());
}

void a_device_that_is_not_there_is_refused_in_a_line() {
    for (const int ordinal : {2, -1}) {
        const std::string said = CHECK_ERROR(CudaDevice(folder, on(ordinal)), DRT_ERROR_ENGINE);
        CHECK(said.find("there is no CUDA device " + std::to_string(ordinal) + ", CUDA shows 2: 0 Played Turing, 1 Played Ada; set") == 0);
    }
    CHECK(played().retained[0] == 0 && played().retained[1] == 0);
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
    voxels_are_read_back_on_the_stream();
    a_callers_context_says_which_device();
    a_device_that_is_not_there_is_refused_in_a_line();
    a_worker_is_told_the_device();
}
