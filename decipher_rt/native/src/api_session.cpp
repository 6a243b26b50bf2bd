// decipher_rt.h: status, opening and closing, running on a volume.

#include <algorithm>
#include <future>

#include "api.hpp"
#include "blocked_signals.hpp"
#include "elapsed.hpp"
#include "worker_client.hpp"

using namespace decipher;

namespace {

constexpr unsigned most_threads = 1024;

const drt_session_params default_params = [] {
    drt_session_params params{};
    params.struct_size = sizeof params;
    params.device = DRT_CPU;
    params.mode = DRT_IN_PROCESS;
    params.precision = "fp32";
    params.threads = 1;
    return params;
}();

const drt_cuda_params default_cuda = [] {
    drt_cuda_params params{};
    params.struct_size = sizeof params;
    return params;
}();

const drt_volume default_volume = [] {
    drt_volume volume{};
    volume.struct_size = sizeof volume;
    volume.memory = DRT_HOST_MEMORY;
    volume.type = DRT_INT16;
    for (int i = 0; i < 4; ++i) volume.affine_lps_mm[5 * i] = 1;
    volume.slope = 1;
    return volume;
}();

std::string text_or_empty(const char* text) { return text != nullptr ? text : ""; }

SessionOptions session_options(const char* bundle, const drt_session_params& params) {
    if (params.threads < 1 || params.threads > most_threads)
        throw argument_error("threads is " + std::to_string(params.threads) + ", expected 1 to " + std::to_string(most_threads));
    if (params.mode != DRT_IN_PROCESS && params.mode != DRT_WORKER)
        throw argument_error("mode " + std::to_string(params.mode) + " is none of drt_mode");
    if (params.device != DRT_CPU && params.device != DRT_CUDA)
        throw argument_error("device " + std::to_string(params.device) + " is none of drt_device");
    SessionOptions options;
    options.bundle = &required(bundle, "bundle");
    options.precision = params.precision != nullptr ? params.precision : "fp32";
    options.cache_folder = text_or_empty(params.cache_folder);
    options.library_folder = text_or_empty(params.library_folder);
    options.threads = params.threads;
    if (params.device == DRT_CUDA)
        options.cuda = params.cuda != nullptr ? read_struct(params.cuda, "params->cuda", default_cuda) : default_cuda;
    const bool of_host = options.cuda && (options.cuda->context != nullptr || options.cuda->stream != nullptr ||
                                          options.cuda->allocate != nullptr);
    if (params.mode == DRT_WORKER && of_host)
        throw Error(DRT_ERROR_UNSUPPORTED, "context, stream and allocator do not reach a worker process: leave them NULL, "
                                           "or open the session in process");
    if (params.heads != nullptr) options.heads = params.heads;
    options.callbacks = {params.log, params.progress, params.cancel, params.user_data};
    return options;
}

SeriesForm form_of(const drt_volume& volume) {
    return check_form(volume.type, volume.shape, volume.affine_lps_mm, volume.slope, volume.intercept,
                      header_facts(volume.modality, volume.body_part));
}

// Voxels in device memory are read back into the session's own buffer: preprocessing is the CPU's.
VolumeView view_of(drt_session& session, const drt_volume& volume) {
    const auto* voxels = &required(static_cast<const std::byte*>(volume.voxels), "volume->voxels");
    const auto size = static_cast<std::int64_t>(bytes_of(volume.type));
    const std::array<std::int64_t, 3> contiguous = {size * volume.shape[1] * volume.shape[2], size * volume.shape[2], size};
    const std::array<std::int64_t, 3> given = {volume.strides[0], volume.strides[1], volume.strides[2]};
    const bool is_contiguous = given == std::array<std::int64_t, 3>{} || given == contiguous;
    if (volume.memory == DRT_HOST_MEMORY) return {voxels, is_contiguous ? contiguous : given};
    if (volume.memory != DRT_CUDA_MEMORY) throw argument_error("memory " + std::to_string(volume.memory) + " is none of drt_memory");
    const Gpu& gpu = session.backend->gpu();
    if (!is_contiguous) throw argument_error("voxels in device memory must be C-contiguous");
    session.from_device.resize(static_cast<std::size_t>(contiguous[0] * volume.shape[0]));
    gpu.read_back(session.from_device.data(), voxels, session.from_device.size());
    return {session.from_device.data(), contiguous};
}

void run_now(drt_session& session, const drt_volume& volume) {
    session.result.reset();
    const SeriesForm form = form_of(volume);
    const auto start = std::chrono::steady_clock::now();
    const VolumeView view = view_of(session, volume);
    const double read_back_ms = milliseconds_since(start);
    Result& result = session.result.emplace(session.backend->run(form, view));
    result.times.preprocess_ms += read_back_ms;
    result.times.total_ms += read_back_ms;
}

}  // namespace

const char* drt_status_text(drt_status status) {
    switch (status) {
        case DRT_OK: return "done";
        case DRT_ERROR_ARGUMENT: return "wrong argument";
        case DRT_ERROR_BUNDLE: return "bundle refused";
        case DRT_ERROR_SERIES: return "series refused";
        case DRT_ERROR_ENGINE: return "engine failed";
        case DRT_ERROR_CANCELLED: return "cancelled";
        case DRT_ERROR_BUFFER_SIZE: return "buffer too small";
        case DRT_ERROR_MEMORY: return "out of memory";
        case DRT_ERROR_NO_RESULT: return "no result";
        case DRT_ERROR_NOT_ANSWERED: return "not answered: out of scope";
        case DRT_ERROR_WORKER_LOST: return "worker process lost";
        case DRT_ERROR_DEVICE_LOST: return "device lost";
        case DRT_ERROR_UNSUPPORTED: return "not supported";
        case DRT_ERROR_INTERNAL: return "internal error";
    }
    return "unknown status";
}

const char* drt_last_error(void) { return last_error(); }

const char* drt_version(void) { return DRT_VERSION_TEXT; }

uint32_t drt_abi_version(void) { return DRT_ABI_VERSION; }

void drt_session_default_params(drt_session_params* params, size_t struct_size) {
    give_defaults(params, struct_size, default_params);
}

void drt_cuda_default_params(drt_cuda_params* params, size_t struct_size) {
    give_defaults(params, struct_size, default_cuda);
}

void drt_default_volume(drt_volume* volume, size_t struct_size) { give_defaults(volume, struct_size, default_volume); }

drt_status drt_session_open(const char* bundle, const drt_session_params* params, drt_session** session) {
    if (session != nullptr) *session = nullptr;
    return guarded([&] {
        required(session, "session");
        const drt_session_params given = params != nullptr ? read_struct(params, "params", default_params) : default_params;
        const SessionOptions options = session_options(bundle, given);
        auto opened = std::make_unique<drt_session>();
        if (given.mode == DRT_WORKER)
            opened->backend = make_worker(options, text_or_empty(given.worker_path), given.worker_timeout_ms);
        else
            opened->backend = make_in_process(options);
        *session = opened.release();
    });
}

void drt_session_close(drt_session* session) {
    guarded([&] { delete session; });
}

drt_status drt_session_warm_up(drt_session* session) {
    return guarded([&] {
        drt_session& opened = idle(session);
        opened.result.reset();
        opened.backend->warm_up();
    });
}

drt_status drt_session_run(drt_session* session, const drt_volume* volume) {
    return guarded([&] {
        drt_session& opened = idle(session);
        opened.result.reset();
        run_now(opened, read_struct(volume, "volume", default_volume));
    });
}

drt_status drt_session_enqueue(drt_session* session, const drt_volume* volume, drt_done_callback done, void* user_data) {
    return guarded([&] {
        drt_session& opened = idle(session);
        opened.backend->gpu();
        drt_volume given = read_struct(volume, "volume", default_volume);
        form_of(given);  // what is wrong with it is said at once
        const HeaderFacts header = header_facts(given.modality, given.body_part);  // the caller's text may go
        std::promise<void> kept;  // the thread: who waits for it may do so as soon as `done` is called
        const BlockedSignals in_new_thread;
        opened.enqueued = std::jthread([&opened, given, header, done, user_data, is_kept = kept.get_future()]() mutable {
            is_kept.wait();
            given.modality = header.modality ? header.modality->c_str() : nullptr;
            given.body_part = header.body_part ? header.body_part->c_str() : nullptr;
            opened.enqueued_failure = nullptr;
            const drt_status status = guarded([&] {
                try {
                    run_now(opened, given);
                } catch (...) {
                    opened.enqueued_failure = std::current_exception();
                    throw;
                }
            });
            if (done != nullptr) done(user_data, status);
        });
        kept.set_value();
    });
}

drt_status drt_session_wait(drt_session* session) {
    return guarded([&] {
        drt_session& opened = required(session, "session");
        if (!opened.enqueued.joinable()) return;
        opened.enqueued.join();
        if (opened.enqueued_failure) std::rethrow_exception(opened.enqueued_failure);
    });
}
