// libcuda.so.1 with two devices, of compute capability 7.5 and 8.9, whose memory is the host's. The prototypes are those
// of cuda.h.
#include "played_cuda.hpp"

#include <cuda.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace {

constexpr int devices = 2;
constexpr int architectures[devices] = {75, 89};
constexpr const char* names[devices] = {"Played Turing", "Played Ada"};
int contexts[devices];  // their addresses are the handles
Played played;
std::mutex mutex;                    // of what was played
thread_local std::vector<int> pushed;  // devices of this thread's contexts

int device_of(CUcontext context) {
    for (int i = 0; i < devices; ++i)
        if (reinterpret_cast<int*>(context) == &contexts[i]) return i;
    return -1;
}

// With the lock held.
CUresult needs(const char* call, int device = -1) {
    if (!pushed.empty() && (device < 0 || pushed.back() == device)) return CUDA_SUCCESS;
    played.wrong.emplace_back(call);
    return CUDA_ERROR_INVALID_CONTEXT;
}

CUresult enqueue(const char* call, void* to, const void* from, std::size_t bytes, CUstream stream) {
    const std::lock_guard guard(mutex);
    if (needs(call, played.streams.at(stream)) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    played.waiting.push_back({stream, [=] { std::memcpy(to, from, bytes); }});
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

Played* played_cuda() { return &played; }

CUresult cuInit(unsigned flags) { return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }

CUresult cuDriverGetVersion(int* version) {
    *version = 12040;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult, const char** name) {
    *name = "CUDA_ERROR_PLAYED";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
    *count = devices;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    if (ordinal < 0 || ordinal >= devices) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    std::strncpy(name, names[device], static_cast<std::size_t>(length));
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    const bool major = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    *value = major ? architectures[device] / 10 : architectures[device] % 10;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    const std::lock_guard guard(mutex);
    ++played.retained[device];
    *context = reinterpret_cast<CUcontext>(&contexts[device]);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    const std::lock_guard guard(mutex);
    --played.retained[device];
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
    const std::lock_guard guard(mutex);
    if (device_of(context) < 0) return CUDA_ERROR_INVALID_CONTEXT;
    pushed.push_back(device_of(context));
    ++played.current;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
    const std::lock_guard guard(mutex);
    if (needs("cuCtxPopCurrent") != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    *context = reinterpret_cast<CUcontext>(&contexts[pushed.back()]);
    pushed.pop_back();
    --played.current;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
    const std::lock_guard guard(mutex);
    if (needs("cuCtxGetDevice") != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    *device = pushed.back();
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned, int) {
    const std::lock_guard guard(mutex);
    if (needs("cuStreamCreateWithPriority") != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    if (played.refuses_streams) return CUDA_ERROR_OUT_OF_MEMORY;
    void* made = std::malloc(1);
    played.streams[made] = pushed.back();
    *stream = static_cast<CUstream>(made);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
    const std::lock_guard guard(mutex);
    if (needs("cuStreamDestroy", played.streams.at(stream)) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    played.streams.erase(stream);
    std::free(stream);
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, std::size_t bytes) {
    const std::lock_guard guard(mutex);
    if (needs("cuMemAlloc") != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    void* made = std::malloc(bytes);
    played.memory[made] = pushed.back();
    *address = reinterpret_cast<CUdeviceptr>(made);
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
    const std::lock_guard guard(mutex);
    void* pointer = reinterpret_cast<void*>(address);
    if (needs("cuMemFree", played.memory.at(pointer)) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    played.memory.erase(pointer);
    std::free(pointer);
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void*) {
    const std::lock_guard guard(mutex);
    if (needs("cuModuleLoadData") != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    *module = reinterpret_cast<CUmodule>(&played.modules);
    ++played.modules;
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule) {
    const std::lock_guard guard(mutex);
    if (needs("cuModuleUnload") != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    --played.modules;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
    *function = reinterpret_cast<CUfunction>(&played.modules);
    return std::strcmp(name, "played_patch_embed") == 0 ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_ERROR_NOT_SUPPORTED; }

// Takes volume, window, tokens, out, number of tokens, width: every value of an embedded patch is its index in the grid,
// where there is a window.
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream stream, void** places, void**) {
    const std::lock_guard guard(mutex);
    if (needs("cuLaunchKernel", played.streams.at(stream)) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    void* pointers[4];
    for (int i = 0; i < 4; ++i) std::memcpy(&pointers[i], places[i], sizeof(void*));
    const int kept = *static_cast<const int*>(places[4]), width = *static_cast<const int*>(places[5]);
    played.waiting.push_back({stream, [=] {
        const auto* window = static_cast<const float*>(pointers[1]);
        const auto* tokens = static_cast<const std::int64_t*>(pointers[2]);
        for (int i = 0; i < kept * width && window[0] < window[1]; ++i)
            static_cast<std::uint16_t*>(pointers[3])[i] = static_cast<std::uint16_t>(tokens[i / width]);
    }});
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
    return enqueue("cuMemcpyHtoDAsync", reinterpret_cast<void*>(to), from, bytes, stream);
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return enqueue("cuMemcpyDtoHAsync", to, reinterpret_cast<const void*>(from), bytes, stream);
}

// Of memory that it has given it knows all, of other it says that it is none.
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    void* const pointer = reinterpret_cast<void*>(to);
    {
        const std::lock_guard guard(mutex);
        if (played.memory.count(pointer) == 0) return CUDA_ERROR_INVALID_VALUE;
    }
    return enqueue("cuMemcpyDtoDAsync", pointer, reinterpret_cast<const void*>(from), bytes, stream);
}

CUresult cuStreamSynchronize(CUstream stream) {
    const std::lock_guard guard(mutex);
    if (played.lost) return CUDA_ERROR_LAUNCH_FAILED;
    if (needs("cuStreamSynchronize", played.streams.at(stream)) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    std::erase_if(played.waiting, [stream](const PlayedWork& one) {
        if (one.stream == stream) one.work();
        return one.stream == stream;
    });
    return CUDA_SUCCESS;
}

}  // extern "C"
