// A whole session on a GPU that is played, the driver as well as TensorRT: how the encoder is loaded, fed, read and let go.
#include <decipher_rt.h>
#include <dlfcn.h>
#include <stdlib.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "played_cuda.hpp"
#include "sample.hpp"
#include "sha256.hpp"
#include "written_cubin.hpp"
#include "written_npz.hpp"

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr const char* card = "sm_75";  // of device 0
constexpr const char* plan = "encoder.plan";

std::string read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// The bundle with a plan for the played card and the played kernel.
class PlannedBundle {
public:
    explicit PlannedBundle(const fs::path& from) {
        std::string made = (fs::temp_directory_path() / "drt-XXXXXX").string();
        CHECK(mkdtemp(made.data()) != nullptr);
        folder_ = made;
        fs::copy(from, folder_, fs::copy_options::recursive);
        manifest_ = Json::parse(read(folder_ / "manifest.json"));
        const auto buckets = manifest_.at("preprocessing").at("token_buckets").get<std::vector<int>>();
        std::string tokens;
        for (const int one : buckets) tokens += (tokens.empty() ? "" : " ") + std::to_string(one);
        manifest_["engines"].push_back({{"target", std::string("tensorrt-") + card}, {"precision", "fp16"}, {"file", plan},
                                        {"built_with", {{"architectures", card}, {"tokens", tokens}, {"card", "Played Turing"}}}});
        const Json& encoder = manifest_.at("encoder");
        write(plan, "played " + std::to_string(buckets.size()) + " " + encoder.at("embedding_size").dump());
        const int width = encoder.at("width").get<int>();
        const auto pointer = [](const char* name) { return Json{{"name", name}, {"align", 16}}; };
        const auto number = [](int times, Json size) { return Json{{"int32", {{"times", times}, {"block", 1}, {"size", std::move(size)}}}}; };
        const Json one = {{"times", 1}, {"block", 1}, {"size", nullptr}};
        write("kernels/any.cubin", cubin());
        write("kernels/kernels.json",
              Json{{"schema", "decipher-rt/kernels/1"},
                   {"kernels", {{{"kernel", "patch_embed3d"}, {"architecture", card}, {"entry", "played_patch_embed"}, {"cubin", "any.cubin"},
                                 {"threads", 128}, {"shared_memory_bytes", 0}, {"raise_shared_memory_limit", false}, {"grid", {one, one, one}},
                                 {"arguments", {pointer("volume"), pointer("window"), pointer("tokens"), pointer("out"), number(1, "tokens"),
                                                number(width, nullptr)}}}}}}
                  .dump());
        write("kernels/patch_embed3d.npz", zip({{"bias.npy", npy("<f4", std::to_string(width) + ",", std::string(4 * static_cast<std::size_t>(width), '\0'))}}));
        sum();
    }
    ~PlannedBundle() { fs::remove_all(folder_); }
    PlannedBundle(const PlannedBundle&) = delete;
    PlannedBundle& operator=(const PlannedBundle&) = delete;

    const char* path() const { return folder_.c_str(); }
    Json& entry() { return manifest_["engines"].back(); }

    void write(const std::string& name, const std::string& content) {
        fs::create_directories((folder_ / name).parent_path());
        std::ofstream(folder_ / name, std::ios::binary) << content;
    }

    void sum() {
        write("manifest.json", manifest_.dump());
        std::string sums;
        for (const auto& file : fs::recursive_directory_iterator(folder_)) {
            const std::string name = file.path().lexically_relative(folder_).string();
            if (!file.is_regular_file() || name == "SHA256SUMS") continue;
            const std::string content = read(file.path());
            sums += decipher::hexadecimal(decipher::sha256(std::as_bytes(std::span(content)))) + "  " + name + "\n";
        }
        write("SHA256SUMS", sums);
    }

private:
    fs::path folder_;
    Json manifest_;
};

Played& played() { return *reinterpret_cast<decltype(&played_cuda)>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), "played_cuda"))(); }

bool left_nothing() {
    const Played& state = played();
    return state.retained[0] == 0 && state.memory.empty() && state.streams.empty() && state.modules == 0 && state.current == 0 && state.wrong.empty();
}

drt_session_params on_card(const drt_cuda_params* cuda = nullptr) {
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.device = DRT_CUDA;
    params.precision = "fp16";
    params.threads = 2;
    params.cuda = cuda;
    return params;
}

drt_session* opened(const PlannedBundle& bundle, const drt_session_params& params) {
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle.path(), &params, &session) == DRT_OK);
    return session;
}

drt_session_info described(const drt_session* session) {
    drt_session_info info{};
    info.struct_size = sizeof info;
    CHECK(drt_session_describe(session, &info) == DRT_OK);
    return info;
}

// What the played kernel and encoder make of a series: every value of a token is its place.
std::vector<float> right_answer(const drt_session* session, const drt_session_info& info) {
    std::size_t count = 0, size = 0;
    CHECK(drt_token_indices(session, nullptr, 0, &count) == DRT_OK && count > 0);
    std::vector<std::int64_t> indices(count);
    CHECK(drt_token_indices(session, indices.data(), count, &count) == DRT_OK);
    std::vector<float> expected, patch(count * info.patch_width);
    for (const std::int64_t index : indices) expected.insert(expected.end(), info.patch_width, played_token(index));
    CHECK(drt_patch_tokens(session, patch.data(), patch.size(), &size) == DRT_OK && size == patch.size() && patch == expected);
    CHECK(embedding_of(session).at(0) == played_direction(static_cast<std::int64_t>(count)));
    return patch;
}

void the_encoder_answers_for_any_number_of_tokens(const PlannedBundle& bundle, const Sample& sample) {
    const drt_session_params params = on_card();
    drt_session* session = opened(bundle, params);
    const drt_session_info info = described(session);
    CHECK(std::string(info.engine) == "tensorrt" && std::string(info.device) == "cuda:0" && std::string(info.precision) == "fp16");
    CHECK(info.device_bytes > 0 && played().waiting.empty());
    const std::size_t blocks = played().memory.size();
    CHECK(drt_session_warm_up(session) == DRT_OK);
    drt_volume volume = sample.volume;
    std::vector<std::size_t> seen;
    for (const double scale : {1.6, 1.2, 0.6}) {
        for (int i = 0; i < 12; ++i) volume.affine_lps_mm[i] = sample.volume.affine_lps_mm[i] * scale;
        CHECK(drt_session_run(session, &volume) == DRT_OK);
        seen.push_back(right_answer(session, info).size());
    }
    CHECK(seen[0] > seen[1] && seen[1] > seen[2]);
    CHECK(played().memory.size() == blocks && described(session).device_bytes == info.device_bytes);  // nothing more was taken
    drt_session_close(session);
    CHECK(left_nothing());
}

void a_host_gives_context_stream_and_memory(const PlannedBundle& bundle, const Sample& sample) {
    static std::uint64_t held = 0, most = 0;
    const drt_session_params first_params = on_card();
    drt_session* first = opened(bundle, first_params);  // has a context and a stream to give
    void* const stream = const_cast<void*>(played().streams.begin()->first);
    drt_cuda_params cuda;
    drt_cuda_default_params(&cuda, sizeof cuda);
    cuda.stream = stream;
    cuda.allocate = [](void*, std::size_t bytes, std::size_t alignment) {
        most = std::max(most, held += bytes);
        return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    };
    cuda.deallocate = [](void*, void* pointer, std::size_t bytes) { held -= bytes, std::free(pointer); };
    const drt_session_params params = on_card(&cuda);
    drt_session* session = opened(bundle, params);
    const drt_session_info info = described(session);
    CHECK(info.device_bytes == most);

    // Voxels from device memory, outputs to device memory.
    Played& state = played();
    std::vector<std::int16_t> voxels = sample.voxels;
    drt_volume volume = sample.volume;
    volume.voxels = voxels.data();
    volume.memory = DRT_CUDA_MEMORY;
    CHECK(drt_session_enqueue(session, &volume, nullptr, nullptr) == DRT_OK && drt_session_wait(session) == DRT_OK);
    const std::vector<float> expected = right_answer(session, info);
    std::vector<float> copied(expected.size());
    std::size_t size = 0;
    CHECK(drt_patch_tokens_on_device(session, copied.data(), copied.size(), &size) == DRT_ERROR_ARGUMENT);  // the host's memory
    state.memory[copied.data()] = 0;
    CHECK(drt_patch_tokens_on_device(session, copied.data(), copied.size(), &size) == DRT_OK && state.waiting.size() == 1);
    CHECK(copied != expected);  // lies on the host's stream
    CHECK(drt_session_run(session, &sample.volume) == DRT_OK && copied == expected);
    state.memory.erase(copied.data());
    drt_session_close(session);
    CHECK(held == 0);
    drt_session_close(first);
    CHECK(left_nothing());
}

void what_does_not_fit_is_refused_and_leaves_nothing(PlannedBundle& bundle) {
    const auto refused = [&](const std::string& said) {
        const drt_session_params params = on_card();
        drt_session* session = nullptr;
        bundle.sum();
        const drt_status expected = said.find("export the bundle again") != said.npos ? DRT_ERROR_BUNDLE : DRT_ERROR_ENGINE;
        CHECK(drt_session_open(bundle.path(), &params, &session) == expected);
        if (std::string(drt_last_error()).find(said) == std::string::npos) std::cerr << drt_last_error() << '\n';
        CHECK(session == nullptr && std::string(drt_last_error()).find(said) != std::string::npos && left_nothing());
    };
    const std::string content = read(fs::path(bundle.path()) / plan);
    bundle.write(plan, "of TensorRT 11");
    refused("refuses it on sm_75: the plan is of another version");
    bundle.write(plan, "played 1 128");
    refused("names other profiles than it has; export the bundle again");
    bundle.write(plan, content.substr(0, content.rfind(' ')) + " 512");
    refused("its embedding is not that of the manifest; export the bundle again");
    bundle.write(plan, content);
    bundle.entry()["built_with"]["card"] = "Another Turing";
    refused("this card is sm_75 (Played Turing)");
    bundle.entry()["built_with"]["card"] = "Played Turing";
    bundle.entry()["built_with"]["architectures"] = "sm_90";
    refused("engines for sm_90");
    bundle.entry()["built_with"]["architectures"] = card;
    bundle.sum();
}

void a_card_that_is_lost_is_told_within_100_ms(const PlannedBundle& bundle, const Sample& sample) {
    const drt_session_params params = on_card();
    drt_session* session = opened(bundle, params);
    drt_volume volume = sample.volume;
    CHECK(drt_session_run(session, &volume) == DRT_OK);
    volume.memory = DRT_CUDA_MEMORY;  // at the beginning of a run
    played().lost = true;
    const auto start = Clock::now();
    CHECK(drt_session_run(session, &volume) == DRT_ERROR_DEVICE_LOST);
    CHECK(Clock::now() - start < std::chrono::milliseconds(100));
    volume.memory = DRT_HOST_MEMORY;  // in the encoder
    CHECK(drt_session_run(session, &volume) == DRT_ERROR_DEVICE_LOST);
    std::size_t size = 0;
    CHECK(drt_embedding(session, nullptr, 0, &size) == DRT_ERROR_NO_RESULT);
    drt_session_close(session);
    played().lost = false;
    played().waiting.clear();
    CHECK(left_nothing());
}

}  // namespace

int main(int, char** arguments) {
    const Sample sample;
    PlannedBundle bundle(arguments[1]);
    the_encoder_answers_for_any_number_of_tokens(bundle, sample);
    a_host_gives_context_stream_and_memory(bundle, sample);
    what_does_not_fit_is_refused_and_leaves_nothing(bundle);
    a_card_that_is_lost_is_told_within_100_ms(bundle, sample);
}
