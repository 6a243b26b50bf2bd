// One GPU through the CUDA driver, loaded at run time: a context and stream of the caller's or our own, and device memory
// that is taken while opening and at no other time.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>

#include "decipher_rt.h"
#include "shared_library.hpp"

namespace decipher {

// The functions of libcuda.so.1 that are used, by the names that its header maps to the current versions.
struct CudaDriver {
    CudaDriver();

    decltype(&cuInit) init;
    decltype(&cuDriverGetVersion) version;
    decltype(&cuDeviceGetCount) device_count;
    decltype(&cuDeviceGet) device_get;
    decltype(&cuDeviceGetName) device_name;
    decltype(&cuDeviceGetAttribute) device_attribute;
    decltype(&cuDevicePrimaryCtxRetain) retain_primary;
    decltype(&cuDevicePrimaryCtxRelease) release_primary;
    decltype(&cuCtxPushCurrent) push_context;
    decltype(&cuCtxPopCurrent) pop_context;
    decltype(&cuCtxGetDevice) context_device;
    decltype(&cuStreamCreateWithPriority) create_stream;
    decltype(&cuStreamDestroy) destroy_stream;
    decltype(&cuStreamSynchronize) synchronize;
    decltype(&cuMemAlloc) allocate;
    decltype(&cuMemFree) free;
    decltype(&cuMemcpyHtoDAsync) upload;
    decltype(&cuMemcpyDtoHAsync) download;
    decltype(&cuMemcpyDtoDAsync) copy;
    decltype(&cuModuleLoadData) load_module;
    decltype(&cuModuleUnload) unload_module;
    decltype(&cuModuleGetFunction) module_function;
    decltype(&cuFuncSetAttribute) set_attribute;
    decltype(&cuLaunchKernel) launch;
    decltype(&cuGetErrorName) error_name;

    // Throws a device-lost error where the context is of no more use, else an engine error.
    void check(CUresult result, const char* what) const;

private:
    SharedLibrary library_;
};

class CudaDevice {
public:
    // Throws an engine error where there is no driver or no such device.
    explicit CudaDevice(const drt_cuda_params& params);
    ~CudaDevice();
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;

    const CudaDriver& driver() const { return driver_; }
    CUstream stream() const { return stream_; }
    int ordinal() const { return device_; }
    int architecture() const { return architecture_; }  // compute capability times ten
    std::string name() const;
    int version() const { return version_; }            // newest CUDA of the driver: 12040 is 12.4

    // On the stream, and waited for. Not cuMemcpy: that would wait for whatever blocking streams of the host wait for. This
    // and the next throw an argument error where an address of the caller is none of the context.
    void read_back(void* to, const void* from, std::size_t bytes) const;
    // On the stream, and waited for where it is not the caller's.
    void copy(void* to, const void* from, std::size_t bytes) const;

    // The caller's allocator, or CUDA's, from any thread. Nothing is given once the session is open: whoever asks gets
    // nullptr. What still uses the memory lies on the stream `after`, by default the session's own.
    void* allocate(std::size_t bytes, std::size_t alignment) noexcept;
    void deallocate(void* pointer, std::optional<CUstream> after = {}) noexcept;
    void seal() { sealed_ = true; }
    std::uint64_t bytes() const { return bytes_; }  // the most that were held at a time

    // The context is current in the calling thread while this lives; what was current before comes back after it.
    class Current {
    public:
        explicit Current(const CudaDevice& device) : device_(device) { device_.driver_.check(device_.driver_.push_context(device_.context_), "cuCtxPushCurrent"); }
        ~Current() {
            CUcontext ours = nullptr;
            device_.driver_.pop_context(&ours);
        }
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;

    private:
        const CudaDevice& device_;
    };

private:
    struct ReleasePrimary {
        const CudaDriver* driver;
        CUdevice device;
        void operator()(CUcontext) const { driver->release_primary(device); }
    };

    CUdevice find(int ordinal) const;
    void check_address(CUresult result, const char* what) const;

    CudaDriver driver_;
    drt_cuda_params params_;
    CUdevice device_ = 0;
    CUcontext context_ = nullptr;
    std::unique_ptr<std::remove_pointer_t<CUcontext>, ReleasePrimary> primary_;  // empty where the context is the caller's
    CUstream stream_ = nullptr;
    int architecture_ = 0, version_ = 0;
    std::mutex mutex_;
    std::map<void*, std::size_t> blocks_;  // guarded by the mutex, as the next
    std::uint64_t held_ = 0;
    std::atomic<std::uint64_t> bytes_ = 0;
    std::atomic<bool> sealed_ = false;
};

// Device memory of so many bytes; throws a memory error where there is none.
class DeviceBuffer {
public:
    DeviceBuffer() = default;
    DeviceBuffer(CudaDevice& device, std::size_t bytes);
    ~DeviceBuffer();
    DeviceBuffer(DeviceBuffer&& other) noexcept;
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

    void* pointer() const { return pointer_; }
    CUdeviceptr address() const { return reinterpret_cast<CUdeviceptr>(pointer_); }
    std::size_t bytes() const { return bytes_; }
    void upload(const void* from, std::size_t bytes);
    void download(void* to, std::size_t bytes) const;

private:
    CudaDevice* device_ = nullptr;
    void* pointer_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace decipher
