// The C interface on a real bundle: arguments, results, buffers, callbacks, streaming.

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cfenv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>

#include "check.hpp"
#include "sample.hpp"

namespace {

std::string message() { return drt_last_error(); }

void wrong_arguments(const char* bundle) {
    drt_session* session = nullptr;
    CHECK(drt_session_open(nullptr, nullptr, &session) == DRT_ERROR_ARGUMENT);
    CHECK(drt_session_open(bundle, nullptr, nullptr) == DRT_ERROR_ARGUMENT);
    CHECK(drt_session_open("/nonexistent", nullptr, &session) == DRT_ERROR_BUNDLE && session == nullptr);
    CHECK(message().find("/nonexistent") != std::string::npos);
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.precision = "fp12";
    CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_BUNDLE);
    CHECK(message().find("no fp12 encoder") != std::string::npos);
    drt_session_default_params(&params, sizeof params);
    params.threads = 0;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_ARGUMENT);
    drt_session_default_params(&params, sizeof params);
    params.library_folder = "/nonexistent";
    CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_ENGINE);
    params = {};
    CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_ARGUMENT);  // struct_size is 0

    CHECK(drt_session_run(nullptr, nullptr) == DRT_ERROR_ARGUMENT);
    CHECK(drt_series_push(nullptr, nullptr) == DRT_ERROR_ARGUMENT);
    CHECK(drt_series_finish(nullptr) == DRT_ERROR_ARGUMENT);
    CHECK(drt_embedding(nullptr, nullptr, 0, nullptr) == DRT_ERROR_ARGUMENT);
    CHECK(drt_head_label(nullptr, nullptr, 0) == nullptr);
    drt_session_close(nullptr);
    drt_series_free(nullptr);
    CHECK(std::strcmp(drt_status_text(DRT_OK), "done") == 0 && std::strlen(drt_status_text(99)) > 0);
}

void wrong_volumes(drt_session* session, const Sample& sample) {
    const auto refused = [&](drt_status status, auto&& spoil) {
        drt_volume volume = sample.volume;
        spoil(volume);
        CHECK(drt_session_run(session, &volume) == status);
        const std::string said = message();
        CHECK(!said.empty() && said.find('\n') == std::string::npos);
        std::size_t size = 0;
        CHECK(drt_embedding(session, nullptr, 0, &size) == DRT_ERROR_NO_RESULT);
        return said;
    };
    refused(DRT_ERROR_ARGUMENT, [](drt_volume& v) { v.voxels = nullptr; });
    refused(DRT_ERROR_ARGUMENT, [](drt_volume& v) { v.struct_size = 0; });
    refused(DRT_ERROR_ARGUMENT, [](drt_volume& v) { v.type = 77; });
    refused(DRT_ERROR_SERIES, [](drt_volume& v) { v.shape[1] = 0; });
    refused(DRT_ERROR_SERIES, [](drt_volume& v) { v.shape[0] = std::numeric_limits<std::int64_t>::max(); });
    refused(DRT_ERROR_SERIES, [](drt_volume& v) { v.shape[0] = v.shape[1] = v.shape[2] = 65536; });
    refused(DRT_ERROR_SERIES, [](drt_volume& v) { v.affine_lps_mm[0] = std::nan(""); });
    refused(DRT_ERROR_SERIES, [](drt_volume& v) { v.affine_lps_mm[2] = 0; });
    refused(DRT_ERROR_SERIES, [](drt_volume& v) { v.affine_lps_mm[12] = 1; });
    refused(DRT_ERROR_SERIES, [](drt_volume& v) { v.slope = 0; });
    for (const double factor : {1e-9, 1e-30, 1e6, 1e30})  // voxels of no size that an image has
        refused(DRT_ERROR_SERIES, [factor](drt_volume& v) {
            for (int i = 0; i < 12; ++i) v.affine_lps_mm[i] *= factor;
        });
    refused(DRT_ERROR_UNSUPPORTED, [](drt_volume& v) { v.memory = DRT_CUDA_MEMORY; });
    const std::vector<std::int16_t> flat(sample.voxels.size(), 5);
    const std::string said = refused(DRT_ERROR_SERIES, [&](drt_volume& v) { v.voxels = flat.data(); });
    CHECK(said.find("no contrast") != std::string::npos);
    CHECK(drt_session_enqueue(session, &sample.volume, nullptr, nullptr) == DRT_ERROR_UNSUPPORTED);
}

void results(drt_session* session, const Sample& sample) {
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    drt_session_info info{};
    info.struct_size = sizeof info;
    CHECK(drt_session_describe(session, &info) == DRT_OK);
    const std::vector<float> embedding = embedding_of(session);
    CHECK(embedding.size() == info.embedding_size);
    CHECK(std::abs(cosine(embedding, embedding) - 1) < 1e-6);
    double norm = 0;
    for (const float x : embedding) norm += static_cast<double>(x) * static_cast<double>(x);
    CHECK(std::abs(norm - 1) < 1e-4);

    std::size_t size = 0, tokens = 0;
    float one = 0;
    CHECK(drt_embedding(session, &one, 1, &size) == DRT_ERROR_BUFFER_SIZE && size == info.embedding_size);
    CHECK(drt_token_indices(session, nullptr, 0, &tokens) == DRT_OK && tokens > 0 && tokens <= info.patches);
    CHECK(drt_patch_tokens(session, nullptr, 0, &size) == DRT_OK && size == tokens * info.patch_width);
    CHECK(drt_head_values(session, "no such head", nullptr, 0, &size) == DRT_ERROR_ARGUMENT);
    CHECK(drt_embedding_on_device(session, nullptr, 0, &size) == DRT_ERROR_UNSUPPORTED);

    drt_times times{};
    times.struct_size = sizeof times;
    CHECK(drt_times_of_result(session, &times) == DRT_OK);
    const double parts = times.preprocess_ms + times.encode_ms + times.heads_ms;
    CHECK(times.open_ms > 0 && std::abs(parts - times.total_ms) <= 0.02 * times.total_ms);

    // A program of an older header: only what it knows of is written.
    struct {
        drt_times times;
    } old{};
    old.times.struct_size = offsetof(drt_times, heads_ms);
    old.times.heads_ms = -1;
    CHECK(drt_times_of_result(session, &old.times) == DRT_OK && old.times.heads_ms == -1 && old.times.encode_ms > 0);

    drt_scope scope{};
    scope.struct_size = sizeof scope;
    for (std::uint32_t i = 0; i < info.heads; ++i) {
        drt_head_info head{};
        head.struct_size = sizeof head;
        CHECK(drt_session_head(session, i, &head) == DRT_OK);
        CHECK(drt_scope_of_result(session, &scope) == DRT_OK);
        const bool boxes = head.kind == DRT_LOCALISATION, map = head.kind == DRT_SEGMENTATION;
        const drt_status status = boxes ? drt_head_boxes(session, head.name, nullptr, 0, &size)
                                        : drt_head_values(session, head.name, nullptr, 0, &size);
        CHECK(status == (scope.inside != 0 ? DRT_OK : DRT_ERROR_NOT_ANSWERED));
        if (scope.inside == 0) continue;
        CHECK(boxes ? head.values == 0 : size == head.values);
        // What a head of another kind gives is asked in vain.
        CHECK((drt_head_values(session, head.name, nullptr, 0, &size) == DRT_ERROR_ARGUMENT) == boxes);
        CHECK((drt_head_boxes(session, head.name, nullptr, 0, &size) == DRT_ERROR_ARGUMENT) == !boxes);
        CHECK((drt_head_map(session, head.name, nullptr, 0, &size) == DRT_ERROR_ARGUMENT) == !map);
        if (map) {
            std::vector<std::uint8_t> labels(sample.voxels.size());
            CHECK(size == labels.size());
            CHECK(drt_head_map(session, head.name, labels.data(), size - 1, &size) == DRT_ERROR_BUFFER_SIZE);
            CHECK(drt_head_map(session, head.name, labels.data(), size, &size) == DRT_OK);
            CHECK(*std::max_element(labels.begin(), labels.end()) < head.values);
        }
        CHECK(head.kind != DRT_CLASSIFICATION || drt_head_label(session, head.name, 0) != nullptr);
        CHECK(drt_head_label(session, head.name, 1000) == nullptr);
    }
    drt_head_info head{};
    head.struct_size = sizeof head;
    CHECK(drt_session_head(session, info.heads, &head) == DRT_ERROR_ARGUMENT);

    drt_volume padded = sample.volume;  // a Code String as it lies in DICOM
    padded.modality = " MR ", padded.body_part = "BRAIN ";
    CHECK(drt_session_run(session, &padded) == DRT_OK && drt_scope_of_result(session, &scope) == DRT_OK && scope.has_score != 0);
    padded.modality = "", padded.body_part = "  ";
    CHECK(drt_session_run(session, &padded) == DRT_OK && drt_scope_of_result(session, &scope) == DRT_OK && scope.has_score != 0);
    drt_volume other = sample.volume;
    other.modality = "CT";
    CHECK(drt_session_run(session, &other) == DRT_OK && drt_scope_of_result(session, &scope) == DRT_OK);
    CHECK(scope.inside == 0 && scope.has_score == 0 && std::strstr(scope.reason, "CT") != nullptr);
    for (std::uint32_t i = 0; i < info.heads; ++i) {
        CHECK(drt_session_head(session, i, &head) == DRT_OK);
        CHECK(drt_head_values(session, head.name, nullptr, 0, &size) == DRT_ERROR_NOT_ANSWERED);
    }
}

// The same voxels, however they lie in memory and whatever their type, give the same answer.
void layouts(drt_session* session, const Sample& sample) {
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    const std::vector<float> expected = embedding_of(session);
    const std::int64_t height = sample.height, width = sample.width;
    const auto same = [&](const drt_volume& volume, double least) {
        CHECK(drt_session_run(session, &volume) == DRT_OK);
        CHECK(cosine(embedding_of(session), expected) >= least);
    };
    std::vector<std::int16_t> padded(sample.voxels.size() * 6), reversed(sample.voxels.rbegin(), sample.voxels.rend());
    std::vector<float> floats(sample.voxels.begin(), sample.voxels.end());
    std::vector<double> negated(sample.voxels.size());
    std::vector<std::int32_t> wide(sample.voxels.begin(), sample.voxels.end());
    for (std::size_t i = 0; i < sample.voxels.size(); ++i) {
        padded[3 * i] = sample.voxels[i];
        negated[i] = -2.0 * sample.voxels[i];
    }
    drt_volume volume = sample.volume;
    volume.voxels = padded.data();
    volume.strides[0] = 6 * height * width, volume.strides[1] = 6 * width, volume.strides[2] = 6;
    same(volume, 1 - 1e-7);
    volume = sample.volume;
    volume.voxels = &reversed.back();
    volume.strides[0] = -2 * height * width, volume.strides[1] = -2 * width, volume.strides[2] = -2;
    same(volume, 1 - 1e-7);
    volume = sample.volume;
    volume.voxels = floats.data(), volume.type = DRT_FLOAT32;
    same(volume, 1 - 1e-6);
    volume.voxels = wide.data(), volume.type = DRT_INT32;
    same(volume, 1 - 1e-6);
    volume.voxels = negated.data(), volume.type = DRT_FLOAT64, volume.slope = -0.5;
    same(volume, 1 - 1e-6);
}

void streaming(drt_session* session, const Sample& sample) {
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    const std::vector<float> expected = embedding_of(session);
    drt_series_geometry geometry;
    drt_default_geometry(&geometry, sizeof geometry);
    geometry.type = DRT_INT16;
    std::memcpy(geometry.shape, sample.volume.shape, sizeof geometry.shape);
    std::memcpy(geometry.affine_lps_mm, sample.volume.affine_lps_mm, sizeof geometry.affine_lps_mm);
    drt_series* series = nullptr;
    CHECK(drt_series_begin(session, &geometry, &series) == DRT_OK);
    drt_slice slice;
    drt_default_slice(&slice, sizeof slice);
    const auto push = [&](std::int64_t index, double off_mm) {
        slice.pixels = sample.voxels.data() + index * sample.height * sample.width;
        for (int i = 0; i < 3; ++i)
            slice.position_lps_mm[i] = geometry.affine_lps_mm[4 * i + 3] + static_cast<double>(index) * geometry.affine_lps_mm[4 * i];
        slice.position_lps_mm[2] += off_mm;
        return drt_series_push(series, &slice);
    };
    for (std::int64_t i = 0; i < sample.depth; ++i)
        if (i != 5) CHECK(push(i * 7 % sample.depth == 5 ? 0 : i, 0) == DRT_OK || i == 0 || message().find("already") != std::string::npos);
    CHECK(push(5, 1) == DRT_ERROR_SERIES && message().find("none of the series' slices") != std::string::npos);
    CHECK(push(4, 0) == DRT_ERROR_SERIES && message().find("already come") != std::string::npos);
    slice.pixels = nullptr;
    CHECK(drt_series_push(series, &slice) == DRT_ERROR_ARGUMENT);
    std::vector<std::int64_t> absent(static_cast<std::size_t>(sample.depth));
    std::size_t missing = 0;
    CHECK(drt_series_missing(series, absent.data(), absent.size(), &missing) == DRT_OK && missing >= 1);
    CHECK(drt_series_finish(series) == DRT_ERROR_SERIES && message().find("have not come") != std::string::npos);
    for (std::size_t i = 0; i < missing; ++i) CHECK(push(absent[i], 0.01) == DRT_OK);
    CHECK(drt_series_missing(series, nullptr, 0, &missing) == DRT_OK && missing == 0);
    CHECK(drt_series_finish(series) == DRT_OK);
    CHECK(cosine(embedding_of(session), expected) > 1 - 1e-6);
    CHECK(push(0, 0) == DRT_ERROR_ARGUMENT && drt_series_finish(series) == DRT_ERROR_ARGUMENT);
    drt_series_free(series);
}

std::ptrdiff_t threads_now() {
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    return std::distance(begin(tasks), end(tasks));
}

// The graph that was made while opening serves any of them, and its threads are all.
void the_first_type_of_voxels_wants_no_other_graph(const char* bundle, const Sample& sample) {
    const auto threads_after = [&](drt_voxel_type type) {
        drt_session* session = nullptr;
        CHECK(drt_session_open(bundle, nullptr, &session) == DRT_OK);
        drt_volume volume = sample.volume;
        volume.type = type;
        CHECK(drt_session_run(session, &volume) == DRT_OK);
        const auto threads = threads_now();
        drt_session_close(session);
        return threads;
    };
    CHECK(threads_after(DRT_UINT16) == threads_after(DRT_INT16));
}

// What a series wants was made by warming up, the threads of its graphs too; heads answer though that volume is none.
void warming_up(const char* bundle, const Sample& sample) {
    struct Host {
        bool in_heads = false, asked_there = false;
    } host;
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.user_data = &host;
    params.progress = [](void* data, drt_stage stage, double fraction) {
        static_cast<Host*>(data)->in_heads = stage == DRT_HEADS && fraction == 0;
    };
    params.cancel = [](void* data) -> int {
        auto& seen = *static_cast<Host*>(data);
        seen.asked_there = seen.asked_there || seen.in_heads;
        return 0;
    };
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    CHECK(drt_session_warm_up(session) == DRT_OK);
    drt_session_info info{};
    info.struct_size = sizeof info;
    CHECK(drt_session_describe(session, &info) == DRT_OK && host.asked_there == (info.heads > 0));
    const auto threads = threads_now();
    streaming(session, sample);
    CHECK(threads_now() == threads);
    drt_session_close(session);
}

// A thread of a host needs no more than the stack that docs/embedding.md names.
[[maybe_unused]] void small_stack(const char* bundle) {
    struct Work {
        const char* bundle;
        Sample sample;
    } work{bundle, {}};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    CHECK(pthread_attr_setstacksize(&attributes, std::size_t{512} << 10) == 0);
    pthread_t thread;
    const auto in_thread = [](void* data) -> void* {
        const auto& [folder, sample] = *static_cast<Work*>(data);
        drt_session* session = nullptr;
        CHECK(drt_session_open(folder, nullptr, &session) == DRT_OK && drt_session_warm_up(session) == DRT_OK);
        CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
        drt_session_close(session);
        return nullptr;
    };
    CHECK(pthread_create(&thread, &attributes, in_thread, &work) == 0);
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
}

// A host that ends its threads by pthread_cancel, while one is in a call.
void a_cancelled_thread_ends_after_the_call(const char* bundle, const Sample& sample) {
    struct Work {
        const char* bundle;
        const Sample& sample;
        drt_session* session = nullptr;
        bool returned = false;
    } work{bundle, sample};
    pthread_t thread;
    const auto in_thread = [](void* data) -> void* {
        auto& [folder, given, session, returned] = *static_cast<Work*>(data);
        drt_session_params params;
        drt_session_default_params(&params, sizeof params);
        params.progress = [](void*, drt_stage stage, double) {
            if (stage == DRT_PREPROCESS) pthread_cancel(pthread_self());
        };
        CHECK(drt_session_open(folder, &params, &session) == DRT_OK);
        CHECK(drt_session_run(session, &given.volume) == DRT_OK);
        returned = true;
        pthread_testcancel();
        return nullptr;
    };
    CHECK(pthread_create(&thread, nullptr, in_thread, &work) == 0);
    void* ended = nullptr;
    CHECK(pthread_join(thread, &ended) == 0 && ended == PTHREAD_CANCELED && work.returned);
    drt_session_close(work.session);
}

void opening_is_cancelled(const char* bundle) {
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.cancel = [](void*) { return 1; };
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_CANCELLED && session == nullptr);
    CHECK(message() == "cancelled while opening");
}

// What other threads are at is not waited for: they compile, and keep, nothing more.
void opening_ends_where_it_fails(const char* bundle) {
    const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("decipher_rt_api_test_" + std::to_string(getpid()));
    const std::string name = folder.string();
    std::filesystem::create_directory(folder);
    const auto kept = [&folder] { return std::distance(std::filesystem::directory_iterator(folder), {}); };
    bool begun = false;
    drt_session* session = nullptr;
    for (const unsigned threads : {1U, 2U, 3U}) {
        const auto before = kept();
        drt_session_params params;
        drt_session_default_params(&params, sizeof params);
        params.threads = threads;
        params.cache_folder = name.c_str();
        params.library_folder = "/nonexistent";  // where DALI is not; the encoder may be in work by then
        CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_ENGINE && kept() <= before + (threads > 1 ? 1 : 0));
        params.library_folder = nullptr;
        params.user_data = &begun;
        params.progress = [](void* data, drt_stage, double fraction) { *static_cast<bool*>(data) = fraction > 0; };
        params.cancel = [](void* data) -> int { return *static_cast<bool*>(data); };
        const auto then = kept();
        CHECK(drt_session_open(bundle, &params, &session) == DRT_ERROR_CANCELLED && kept() == then);
    }
    std::filesystem::remove_all(folder);
}

void a_process_has_one_dali(const char* bundle) {
    std::string folder;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; folder.empty() && std::getline(maps, line);)
        if (const auto name = line.find("/libdali.so"); name != std::string::npos) folder = line.substr(line.find('/'), name - line.find('/'));
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.heads = "";
    drt_session *first = nullptr, *second = nullptr;
    CHECK(drt_session_open(bundle, &params, &first) == DRT_OK);
    params.library_folder = folder.c_str();
    CHECK(drt_session_open(bundle, &params, &second) == DRT_OK);
    drt_session_close(second);
    params.library_folder = "/nonexistent";
    CHECK(drt_session_open(bundle, &params, &second) == DRT_ERROR_ENGINE);
    CHECK(message().find("/nonexistent does not hold the DALI") != std::string::npos);
    drt_session_close(first);
}

void a_cache_that_cannot_be_written_is_told_once(const char* bundle) {
    std::vector<std::string> warnings;
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.cache_folder = "/dev/null/cache";
    params.user_data = &warnings;
    params.log = [](void* data, drt_log_level level, const char* text) {
        if (level == DRT_LOG_WARNING) static_cast<std::vector<std::string>*>(data)->emplace_back(text);
    };
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    CHECK(warnings.size() == 1 && warnings[0].find("/dev/null/cache") != std::string::npos);
    drt_session_close(session);
}

// A host may round as it likes.
void rounding(drt_session* session, const Sample& sample) {
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
        CHECK(std::fesetround(mode) == 0);
        streaming(session, sample);
        CHECK(std::fegetround() == mode);
    }
    std::fesetround(FE_TONEAREST);
}

struct Seen {
    int logs = 0, calls_until_cancel = -1;
    double last = -1;
    drt_stage stage = DRT_OPEN;
    drt_stage cancel_stage = -1;  // once this one is so far done
    double cancel_fraction = 0;
    bool monotone = true, throws = false;
};

void callbacks(const char* bundle, const Sample& sample) {
    Seen seen;
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.user_data = &seen;
    params.log = [](void* data, drt_log_level, const char*) { ++static_cast<Seen*>(data)->logs; };
    params.progress = [](void* data, drt_stage stage, double fraction) {
        auto& s = *static_cast<Seen*>(data);
        s.monotone = s.monotone && (stage > s.stage || fraction >= s.last) && fraction >= 0 && fraction <= 1;
        s.stage = stage, s.last = fraction;
    };
    params.cancel = [](void* data) {
        auto& s = *static_cast<Seen*>(data);
        if (s.stage == s.cancel_stage && s.last == s.cancel_fraction) return 1;
        const bool now = s.calls_until_cancel >= 0 && s.calls_until_cancel-- == 0;
        if (now && s.throws) throw std::runtime_error("the host's own");
        return now ? 1 : 0;
    };
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    CHECK(seen.logs > 0 && seen.stage == DRT_OPEN && seen.last == 1);
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK);
    CHECK(seen.monotone && seen.stage == DRT_HEADS && seen.last == 1);
    const std::vector<float> expected = embedding_of(session);
    drt_scope scope{};
    scope.struct_size = sizeof scope;
    CHECK(drt_scope_of_result(session, &scope) == DRT_OK);
    for (const bool throws : {false, true})
        for (const int calls : {0, 1, 2}) {  // before preprocessing, before encoding, while encoding
            seen.throws = throws;
            seen.calls_until_cancel = calls;
            seen.stage = DRT_OPEN;
            CHECK(drt_session_run(session, &sample.volume) == (throws ? DRT_ERROR_INTERNAL : DRT_ERROR_CANCELLED));
            seen.calls_until_cancel = -1;
            CHECK(drt_session_run(session, &sample.volume) == DRT_OK && cosine(embedding_of(session), expected) > 1 - 1e-6);
        }
    seen.cancel_stage = DRT_ENCODE, seen.cancel_fraction = 1;  // before the heads
    CHECK(drt_session_run(session, &sample.volume) == DRT_ERROR_CANCELLED);
    seen.cancel_stage = DRT_HEADS, seen.cancel_fraction = 0;  // before the first of them
    CHECK(drt_session_run(session, &sample.volume) == (scope.inside != 0 ? DRT_ERROR_CANCELLED : DRT_OK));
    drt_session_close(session);
}

}  // namespace

int main(int, char** argv) {
    const char* bundle = argv[1];
    const Sample sample;
    wrong_arguments(bundle);
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = 2;
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    std::size_t size = 0;
    CHECK(drt_embedding(session, nullptr, 0, &size) == DRT_ERROR_NO_RESULT);
    CHECK(drt_session_warm_up(session) == DRT_OK);
    CHECK(drt_embedding(session, nullptr, 0, &size) == DRT_ERROR_NO_RESULT);
    wrong_volumes(session, sample);
    results(session, sample);
    layouts(session, sample);
    streaming(session, sample);
    rounding(session, sample);
    drt_session_close(session);
    the_first_type_of_voxels_wants_no_other_graph(bundle, sample);
    warming_up(bundle, sample);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which take stack of their own
    small_stack(bundle);
#endif
    a_cancelled_thread_ends_after_the_call(bundle, sample);
    opening_is_cancelled(bundle);
    opening_ends_where_it_fails(bundle);
    a_process_has_one_dali(bundle);
    a_cache_that_cannot_be_written_is_told_once(bundle);
    callbacks(bundle, sample);
}
