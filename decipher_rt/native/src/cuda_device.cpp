#include "cuda_device.hpp"

#include <algorithm>
#include <utility>

#include "error.hpp"

namespace decipher {

namespace {

constexpr const char* advice = "install NVIDIA's driver, or open with device = DRT_CPU";
constexpr std::size_t cuda_alignment = 256;  // of every cuMemAlloc

// Two steps, so that names that cuda.h maps to a version (cuMemAlloc to cuMemAlloc_v2) are expanded first.
#define DRT_TEXT_OF(name) #name
#define DRT_NAME(name) DRT_TEXT_OF(name)
#define DRT_FIND(member, name) member = library_.function<decltype(member)>(DRT_NAME(name))

bool is_lost(CUresult result) {
    constexpr CUresult fatal[] = {
        CUDA_ERROR_DEINITIALIZED, CUDA_ERROR_CONTEXT_IS_DESTROYED, CUDA_ERROR_ECC_UNCORRECTABLE, CUDA_ERROR_NVLINK_UNCORRECTABLE,
        CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_TIMEOUT, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUDA_ERROR_ILLEGAL_INSTRUCTION, CUDA_ERROR_MISALIGNED_ADDRESS, CUDA_ERROR_INVALID_PC, CUDA_ERROR_DEVICE_UNAVAILABLE,
        CUDA_ERROR_SYSTEM_NOT_READY, CUDA_ERROR_ASSERT, CUDA_ERROR_INVALID_ADDRESS_SPACE,
        static_cast<CUresult>(226), static_cast<CUresult>(911),  // CONTAINED and EXTERNAL_DEVICE, which older headers lack
    };
    return std::find(std::begin(fatal), std::end(fatal), result) != std::end(fatal);
}

}  // namespace

// The driver's own: it lies where the system looks, and never with an application's libraries.
CudaDriver::CudaDriver() : library_(SharedLibrary::load("", "libcuda.so.1", advice)) {
    DRT_FIND(init, cuInit);
    DRT_FIND(version, cuDriverGetVersion);
    DRT_FIND(device_count, cuDeviceGetCount);
    DRT_FIND(device_get, cuDeviceGet);
    DRT_FIND(device_name, cuDeviceGetName);
    DRT_FIND(device_attribute, cuDeviceGetAttribute);
    DRT_FIND(retain_primary, cuDevicePrimaryCtxRetain);
    DRT_FIND(release_primary, cuDevicePrimaryCtxRelease);
    DRT_FIND(push_context, cuCtxPushCurrent);
    DRT_FIND(pop_context, cuCtxPopCurrent);
    DRT_FIND(context_device, cuCtxGetDevice);
    DRT_FIND(create_stream, cuStreamCreateWithPriority);
    DRT_FIND(destroy_stream, cuStreamDestroy);
    DRT_FIND(synchronize, cuStreamSynchronize);
    DRT_FIND(allocate, cuMemAlloc);
    DRT_FIND(free, cuMemFree);
    DRT_FIND(upload, cuMemcpyHtoDAsync);
    DRT_FIND(download, cuMemcpyDtoHAsync);
    DRT_FIND(copy, cuMemcpyDtoDAsync);
    DRT_FIND(load_module, cuModuleLoadData);
    DRT_FIND(unload_module, cuModuleUnload);
    DRT_FIND(module_function, cuModuleGetFunction);
    DRT_FIND(set_attribute, cuFuncSetAttribute);
    DRT_FIND(launch, cuLaunchKernel);
    DRT_FIND(error_name, cuGetErrorName);
}

void CudaDriver::check(CUresult result, const char* what) const {
    if (result == CUDA_SUCCESS) return;
    const char* name = nullptr;
    error_name(result, &name);
    const std::string said = std::string(what) + ": " + (name != nullptr ? name : "unknown CUDA error");
    if (is_lost(result)) throw Error(DRT_ERROR_DEVICE_LOST, said + "; the GPU or its context is lost: open a new session, in a new process if this one gets no other context");
    throw Error(result == CUDA_ERROR_OUT_OF_MEMORY ? DRT_ERROR_MEMORY : DRT_ERROR_ENGINE, said);
}

CudaDevice::CudaDevice(const drt_cuda_params& params) : params_(params) {
    driver_.check(driver_.init(0), "cuInit");
    driver_.check(driver_.version(&version_), "cuDriverGetVersion");
    if (params.context != nullptr) {
        context_ = static_cast<CUcontext>(params.context);
        const Current current(*this);
        driver_.check(driver_.context_device(&device_), "cuCtxGetDevice");
    } else {
        device_ = find(params.device);
        driver_.check(driver_.retain_primary(&context_, device_), "cuDevicePrimaryCtxRetain");
        primary_ = {context_, ReleasePrimary{&driver_, device_}};
    }
    int major = 0, minor = 0;
    driver_.check(driver_.device_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device_), "cuDeviceGetAttribute");
    driver_.check(driver_.device_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device_), "cuDeviceGetAttribute");
    architecture_ = 10 * major + minor;
    const Current current(*this);
    if (params.stream != nullptr)
        stream_ = static_cast<CUstream>(params.stream);
    else
        driver_.check(driver_.create_stream(&stream_, CU_STREAM_NON_BLOCKING, params.priority), "cuStreamCreateWithPriority");
}

CUdevice CudaDevice::find(int ordinal) const {
    int count = 0;
    driver_.check(driver_.device_count(&count), "cuDeviceGetCount");
    CUdevice device = 0;
    if (ordinal >= 0 && ordinal < count) {
        driver_.check(driver_.device_get(&device, ordinal), "cuDeviceGet");
        return device;
    }
    std::string shown;
    for (int i = 0; i < count; ++i) {
        char name[128] = "";
        driver_.check(driver_.device_get(&device, i), "cuDeviceGet");
        driver_.check(driver_.device_name(name, sizeof name, device), "cuDeviceGetName");
        shown += (i > 0 ? ", " : ": ") + std::to_string(i) + " " + name;
    }
    throw engine_error("there is no CUDA device " + std::to_string(ordinal) + ", CUDA shows " + std::to_string(count) + shown +
                       "; set drt_cuda_params.device to one of them, or open with device = DRT_CPU");
}

std::string CudaDevice::name() const {
    char name[128] = "";
    driver_.check(driver_.device_name(name, sizeof name, device_), "cuDeviceGetName");
    return name;
}

CudaDevice::~CudaDevice() {
    try {
        const Current current(*this);
        while (!blocks_.empty()) deallocate(blocks_.begin()->first);
        if (params_.stream == nullptr && stream_ != nullptr) driver_.destroy_stream(stream_);
    } catch (const Error&) {  // a context that is gone took everything along
    }
}

void CudaDevice::read_back(void* to, const void* from, std::size_t bytes) const {
    const Current current(*this);
    check_address(driver_.download(to, reinterpret_cast<CUdeviceptr>(from), bytes, stream_), "cuMemcpyDtoHAsync");
    driver_.check(driver_.synchronize(stream_), "cuStreamSynchronize");
}

void CudaDevice::copy(void* to, const void* from, std::size_t bytes) const {
    const Current current(*this);
    check_address(driver_.copy(reinterpret_cast<CUdeviceptr>(to), reinterpret_cast<CUdeviceptr>(from), bytes, stream_), "cuMemcpyDtoDAsync");
    if (params_.stream == nullptr) driver_.check(driver_.synchronize(stream_), "cuStreamSynchronize");
}

void CudaDevice::check_address(CUresult result, const char* what) const {
    if (result == CUDA_ERROR_INVALID_VALUE)
        throw argument_error(std::string(what) + ": the address is not in device memory of the session's CUDA context");
    driver_.check(result, what);
}

void* CudaDevice::allocate(std::size_t bytes, std::size_t alignment) noexcept {
    if (sealed_ || bytes == 0) return nullptr;
    try {
        std::map<void*, std::size_t> block = {{nullptr, bytes}};  // made first: what is given must be written down
        const Current current(*this);  // TensorRT asks in whatever thread, and the driver gives nothing without a context
        void* pointer = nullptr;
        if (params_.allocate != nullptr) {
            pointer = params_.allocate(params_.user_data, bytes, std::max(alignment, cuda_alignment));
        } else {
            CUdeviceptr address = 0;
            if (driver_.allocate(&address, bytes) == CUDA_SUCCESS) pointer = reinterpret_cast<void*>(address);
        }
        if (pointer == nullptr) return nullptr;
        auto written = block.extract(block.begin());
        written.key() = pointer;
        const std::lock_guard guard(mutex_);
        blocks_.insert(std::move(written));
        held_ += bytes;
        bytes_ = std::max<std::uint64_t>(bytes_, held_);
        return pointer;
    } catch (...) {  // the context is gone, or the host has no memory
        return nullptr;
    }
}

void CudaDevice::deallocate(void* pointer, std::optional<CUstream> after) noexcept {
    std::size_t bytes = 0;
    {
        const std::lock_guard guard(mutex_);
        const auto found = blocks_.find(pointer);
        if (found == blocks_.end()) return;
        bytes = found->second;
        blocks_.erase(found);
        held_ -= bytes;
    }
    try {
        const Current current(*this);  // buffers go in whatever thread, too
        if (params_.allocate == nullptr) {
            driver_.free(reinterpret_cast<CUdeviceptr>(pointer));  // waits for what uses it
        } else if (params_.deallocate != nullptr) {
            driver_.synchronize(after.value_or(stream_));  // a pool could give it to others at once
            params_.deallocate(params_.user_data, pointer, bytes);
        }
    } catch (const Error&) {  // a context that is gone took CUDA's memory along, and a caller's is the caller's
        if (params_.allocate != nullptr && params_.deallocate != nullptr) params_.deallocate(params_.user_data, pointer, bytes);
    }
}

DeviceBuffer::DeviceBuffer(CudaDevice& device, std::size_t bytes) : device_(&device), bytes_(bytes) {
    pointer_ = device.allocate(bytes, cuda_alignment);
    if (pointer_ == nullptr) throw Error(DRT_ERROR_MEMORY, "no " + std::to_string(bytes) + " bytes of device memory");
}

DeviceBuffer::~DeviceBuffer() {
    if (pointer_ != nullptr) device_->deallocate(pointer_);
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : device_(other.device_), pointer_(std::exchange(other.pointer_, nullptr)), bytes_(other.bytes_) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(pointer_, other.pointer_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

void DeviceBuffer::upload(const void* from, std::size_t bytes) {
    device_->driver().check(device_->driver().upload(address(), from, std::min(bytes, bytes_), device_->stream()), "cuMemcpyHtoDAsync");
}

void DeviceBuffer::download(void* to, std::size_t bytes) const {
    device_->driver().check(device_->driver().download(to, address(), std::min(bytes, bytes_), device_->stream()), "cuMemcpyDtoHAsync");
}

}  // namespace decipher
