#include "worker_protocol.hpp"

namespace decipher {

static void put_optional(ByteWriter& writer, const std::optional<std::string>& text) {
    writer.put(text.has_value());
    writer.put(text.value_or(""));
}

static std::optional<std::string> get_optional(ByteReader& reader) {
    const bool known = reader.get_bool();
    std::string text = reader.get_text();
    return known ? std::optional(std::move(text)) : std::nullopt;
}

void put_options(ByteWriter& writer, const SessionOptions& options) {
    writer.put(std::string(DRT_SOURCES_SHA256));
    writer.put(options.bundle);
    writer.put(options.precision);
    writer.put(options.cache_folder);
    writer.put(options.library_folder);
    writer.put(options.threads);
    put_optional(writer, options.heads);
    // No pointers: the worker has a context, a stream and memory of its own.
    writer.put(options.cuda.has_value());
    writer.put(options.cuda ? options.cuda->device : 0);
    writer.put(options.cuda ? options.cuda->priority : 0);
}

SessionOptions get_options(ByteReader& reader) {
    if (reader.get_text() != DRT_SOURCES_SHA256)
        throw engine_error("decipher-rt-worker is of another build than the library, and would not understand it: install both from one");
    SessionOptions options;
    options.bundle = reader.get_text();
    options.precision = reader.get_text();
    options.cache_folder = reader.get_text();
    options.library_folder = reader.get_text();
    options.threads = reader.get<unsigned>();
    options.heads = get_optional(reader);
    const bool on_gpu = reader.get_bool();
    drt_cuda_params cuda{};
    cuda.struct_size = sizeof cuda;
    cuda.device = reader.get<std::int32_t>();
    cuda.priority = reader.get<std::int32_t>();
    if (on_gpu) options.cuda = cuda;
    return options;
}

// The host has checked and converted the voxels: the worker sees them as stored, with no rescale left to do.
void put_form(ByteWriter& writer, const SeriesForm& form) {
    writer.put(form.stored);
    writer.put(form.shape);
    writer.put(form.affine);
    put_optional(writer, form.header.modality);
    put_optional(writer, form.header.body_part);
}

SeriesForm get_form(ByteReader& reader) {
    SeriesForm form{};
    form.stored = reader.get<VoxelType>();
    switch (form.stored) {
        case VoxelType::uint8: form.type = DRT_UINT8; break;
        case VoxelType::uint16: form.type = DRT_UINT16; break;
        case VoxelType::int16: form.type = DRT_INT16; break;
        case VoxelType::float32: form.type = DRT_FLOAT32; break;
    }
    form.shape = reader.get<std::array<std::int64_t, 3>>();
    form.affine = reader.get<Affine>();
    form.header.modality = get_optional(reader);
    form.header.body_part = get_optional(reader);
    return form;
}

void put_description(ByteWriter& writer, const Description& description) {
    writer.put(description.manifest_text);
    writer.put(description.bundle_sha256);
    writer.put(description.engine);
    writer.put(description.device);
    writer.put(description.precision);
    writer.put(description.threads);
    writer.put(description.open_ms);
    writer.put(description.host_bytes);
    writer.put(description.device_bytes);
}

Description get_description(ByteReader& reader) {
    Description description;
    description.manifest_text = reader.get_text();
    description.manifest = parse_manifest(description.manifest_text);
    description.bundle_sha256 = reader.get_text();
    description.engine = reader.get_text();
    description.device = reader.get_text();
    description.precision = reader.get_text();
    description.threads = reader.get<unsigned>();
    description.open_ms = reader.get<double>();
    description.host_bytes = reader.get<std::uint64_t>();
    description.device_bytes = reader.get<std::uint64_t>();
    return description;
}

void put_result(ByteWriter& writer, const Result& result) {
    writer.put(result.embedding);
    writer.put(result.patch);
    writer.put(result.tokens);
    writer.put(result.scope.inside);
    writer.put(result.scope.score.has_value());
    writer.put(result.scope.score.value_or(0));
    writer.put(result.scope.reason);
    writer.put(std::uint64_t{result.heads.size()});
    for (const auto& [name, answer] : result.heads) {
        writer.put(name);
        writer.put(answer.not_answered);
        writer.put(answer.values);
        writer.put(answer.labels);
        writer.put(answer.boxes);
    }
    writer.put(result.grid_affine);
    writer.put(result.source);
    writer.put(result.times);
}

Result get_result(ByteReader& reader) {
    Result result;
    result.embedding = reader.get_list<float>();
    result.patch = reader.get_list<float>();
    result.tokens = reader.get_list<std::int64_t>();
    result.scope.inside = reader.get_bool();
    const bool has_score = reader.get_bool();
    const auto score = reader.get<double>();
    if (has_score) result.scope.score = score;
    result.scope.reason = reader.get_text();
    for (auto heads = reader.get<std::uint64_t>(); heads > 0; --heads) {
        HeadAnswer& answer = result.heads[reader.get_text()];
        answer.not_answered = reader.get_text();
        answer.values = reader.get_list<float>();
        answer.labels = reader.get_list<std::uint8_t>();
        answer.boxes = reader.get_list<FoundBox>();
    }
    result.grid_affine = reader.get<Affine>();
    result.source = reader.get<Placement>();
    result.times = reader.get<Times>();
    return result;
}

}  // namespace decipher
