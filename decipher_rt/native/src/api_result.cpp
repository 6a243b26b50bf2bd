// decipher_rt.h: what was opened, and the result of the last run.

#include <algorithm>
#include <utility>

#include "api.hpp"

using namespace decipher;

namespace {

const Result& result_of(const drt_session* session) {
    const drt_session& opened = idle(session);
    if (!opened.result) throw Error(DRT_ERROR_NO_RESULT, "nothing has been run, or the last run failed");
    return *opened.result;
}

const Head* find_head(const drt_session* session, const char* name) {
    if (session == nullptr || name == nullptr) return nullptr;
    const auto& heads = session->backend->description().manifest.heads;
    const auto found = std::find_if(heads.begin(), heads.end(), [&](const Head& head) { return head.name == name; });
    return found != heads.end() ? &*found : nullptr;
}

// A head and what it said; throws where the bundle has no such head, or it was not asked or gave nothing of use.
std::pair<const Head&, const HeadAnswer&> answered(const drt_session* session, const char* name) {
    const Result& result = result_of(session);
    const Head* head = find_head(session, &required(name, "head"));
    if (head == nullptr) throw argument_error("the bundle has no head '" + std::string(name) + "'; drt_session_head lists them");
    if (!result.scope.inside) throw Error(DRT_ERROR_NOT_ANSWERED, "out of scope: " + result.scope.reason);
    const HeadAnswer& answer = result.heads.at(head->name);
    if (!answer.not_answered.empty()) throw Error(DRT_ERROR_NOT_ANSWERED, "head '" + head->name + "': " + answer.not_answered);
    return {*head, answer};
}

void copy_on_device(const drt_session* session, std::vector<float> Result::*values, const char* output, float* to,
                    std::size_t capacity, std::size_t* size) {
    const std::size_t found = (result_of(session).*values).size();
    const Gpu& gpu = session->backend->gpu();
    if (room_for(found, to, capacity, size, output)) gpu.copy_output(output, to, found * sizeof(float));
}

template <class Struct>
std::size_t size_of(const Struct* info, const char* name) {
    return read_struct(info, name, Struct{}).struct_size;
}

}  // namespace

drt_status drt_session_describe(const drt_session* session, drt_session_info* info) {
    return guarded([&] {
        const Description& opened = required(session, "session").backend->description();
        const std::size_t size = size_of(info, "info");
        drt_session_info said{};
        said.bundle_name = opened.manifest.name.c_str();
        said.bundle_version = opened.manifest.version.c_str();
        said.bundle_sha256 = opened.bundle_sha256.c_str();
        said.intended_use = opened.manifest.intended_use.c_str();
        said.engine = opened.engine.c_str();
        said.device = opened.device.c_str();
        said.precision = opened.precision.c_str();
        said.threads = opened.threads;
        said.heads = static_cast<std::uint32_t>(opened.manifest.heads.size());
        said.embedding_size = static_cast<std::uint64_t>(opened.manifest.encoder.embedding_size);
        said.patch_width = static_cast<std::uint64_t>(opened.manifest.encoder.width);
        said.patches = static_cast<std::uint64_t>(opened.manifest.preprocessing.patches());
        for (std::size_t i = 0; i < 3; ++i) {
            said.grid_shape[i] = opened.manifest.preprocessing.grid_shape[i];
            said.grid_spacing_mm[i] = opened.manifest.preprocessing.spacing_mm[i];
        }
        said.host_bytes = opened.host_bytes;
        said.device_bytes = opened.device_bytes;
        said.worker_pid = opened.worker_pid;
        write_struct(info, size, said);
    });
}

drt_status drt_session_head(const drt_session* session, uint32_t index, drt_head_info* info) {
    return guarded([&] {
        const auto& heads = required(session, "session").backend->description().manifest.heads;
        const std::size_t size = size_of(info, "info");
        if (index >= heads.size())
            throw argument_error("head " + std::to_string(index) + " of " + std::to_string(heads.size()) + ": there is none");
        const Head& head = heads[index];
        drt_head_info said{};
        said.name = head.name.c_str();
        said.description = head.description.c_str();
        said.kind = static_cast<drt_head_kind>(head.kind);
        said.unit = head.unit.c_str();
        said.values = head.kind == HeadKind::regression ? 1 : head.kind == HeadKind::localisation ? 0 : head.labels.size();
        write_struct(info, size, said);
    });
}

const char* drt_head_label(const drt_session* session, const char* head, size_t i) {
    const Head* found = find_head(session, head);
    return found != nullptr && i < found->labels.size() ? found->labels[i].c_str() : nullptr;
}

drt_status drt_embedding(const drt_session* session, float* values, size_t capacity, size_t* size) {
    return guarded([&] { copy_values(result_of(session).embedding, values, capacity, size, "the embedding"); });
}

drt_status drt_patch_tokens(const drt_session* session, float* values, size_t capacity, size_t* size) {
    return guarded([&] { copy_values(result_of(session).patch, values, capacity, size, "the patch tokens"); });
}

drt_status drt_embedding_on_device(const drt_session* session, float* values, size_t capacity, size_t* size) {
    return guarded([&] { copy_on_device(session, &Result::embedding, "embedding", values, capacity, size); });
}

drt_status drt_patch_tokens_on_device(const drt_session* session, float* values, size_t capacity, size_t* size) {
    return guarded([&] { copy_on_device(session, &Result::patch, "patch", values, capacity, size); });
}

drt_status drt_token_indices(const drt_session* session, int64_t* values, size_t capacity, size_t* size) {
    return guarded([&] { copy_values(result_of(session).tokens, values, capacity, size, "the list of tokens"); });
}

drt_status drt_head_values(const drt_session* session, const char* head, float* values, size_t capacity, size_t* size) {
    return guarded([&] {
        const auto& [found, answer] = answered(session, head);
        if (found.kind == HeadKind::localisation) throw argument_error("head '" + found.name + "' gives boxes: ask drt_head_boxes");
        copy_values(answer.values, values, capacity, size, head);
    });
}

drt_status drt_head_boxes(const drt_session* session, const char* head, drt_box* boxes, size_t capacity, size_t* size) {
    return guarded([&] {
        const auto& [found, answer] = answered(session, head);
        if (found.kind != HeadKind::localisation) throw argument_error("head '" + found.name + "' gives no boxes");
        std::vector<drt_box> said;
        for (const FoundBox& box : answer.boxes) {
            drt_box one{};
            one.score = box.score;
            std::copy(box.center_lps_mm.begin(), box.center_lps_mm.end(), one.center_lps_mm);
            std::copy(box.size_mm.begin(), box.size_mm.end(), one.size_mm);
            said.push_back(one);
        }
        copy_values(said, boxes, capacity, size, head);
    });
}

drt_status drt_head_map(const drt_session* session, const char* head, uint8_t* labels, size_t capacity, size_t* size) {
    return guarded([&] {
        const auto& [found, answer] = answered(session, head);
        if (found.kind != HeadKind::segmentation) throw argument_error("head '" + found.name + "' gives no label map");
        const Result& result = result_of(session);
        const auto [D, H, W] = result.source.shape;
        if (!room_for(static_cast<std::size_t>(D * H * W), labels, capacity, size, head)) return;
        labels_on_source(found, answer.labels, session->backend->description().manifest.preprocessing, result.grid_affine,
                         result.source, labels);
    });
}

drt_status drt_grid_affine(const drt_session* session, double affine_lps_mm[16]) {
    return guarded([&] {
        const Affine& affine = result_of(session).grid_affine;
        required(affine_lps_mm, "affine_lps_mm");
        for (std::size_t i = 0; i < 16; ++i) affine_lps_mm[i] = affine.rows[i / 4][i % 4];
    });
}

drt_status drt_scope_of_result(const drt_session* session, drt_scope* scope) {
    return guarded([&] {
        const ScopeAnswer& answer = result_of(session).scope;
        const std::size_t size = size_of(scope, "scope");
        drt_scope said{};
        said.inside = answer.inside ? 1 : 0;
        said.has_score = answer.score ? 1 : 0;
        said.score = answer.score.value_or(0);
        said.reason = answer.reason.c_str();
        write_struct(scope, size, said);
    });
}

drt_status drt_times_of_result(const drt_session* session, drt_times* times) {
    return guarded([&] {
        const Times& taken = result_of(session).times;
        const std::size_t size = size_of(times, "times");
        drt_times said{};
        said.open_ms = session->backend->description().open_ms;
        said.preprocess_ms = taken.preprocess_ms;
        said.encode_ms = taken.encode_ms;
        said.heads_ms = taken.heads_ms;
        said.total_ms = taken.total_ms;
        said.arrival_ms = taken.arrival_ms;
        write_struct(times, size, said);
    });
}
