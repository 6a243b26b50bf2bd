// libFuzzer: series and volumes as a careless host might describe them, on a real session (DECIPHER_RT_TEST_BUNDLE).
// Only what a host must promise is kept: pointers hold as many bytes as shape, type and strides ask for.
#include <decipher_rt.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

// Takes values off the front of the input; zeros once it is used up.
class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    template <class Value>
    Value take() {
        Value value{};
        const std::size_t count = sizeof value < size_ ? sizeof value : size_;
        std::memcpy(&value, data_, count);
        data_ += count, size_ -= count;
        return value;
    }
    bool empty() const { return size_ == 0; }

private:
    const std::uint8_t* data_;
    std::size_t size_;
};

drt_session* open_session() {
    const char* bundle = std::getenv("DECIPHER_RT_TEST_BUNDLE");
    drt_session* session = nullptr;
    if (drt_session_open(bundle != nullptr ? bundle : "decipher_rt/default/bundle", nullptr, &session) != DRT_OK) {
        std::fprintf(stderr, "%s\n", drt_last_error());
        std::abort();
    }
    return session;
}

constexpr std::size_t pixel_bytes[8] = {1, 1, 2, 2, 4, 4, 4, 8};
constexpr std::int64_t largest_buffer = 1 << 20;

void fill(std::vector<std::uint8_t>& buffer, Input& input) {
    const auto seed = input.take<std::uint32_t>();
    for (std::size_t i = 0; i < buffer.size(); ++i) buffer[i] = static_cast<std::uint8_t>((i + seed) * 2654435761u >> 13);
    for (int i = 0; i < 16; ++i)
        if (!buffer.empty()) buffer[input.take<std::uint16_t>() % buffer.size()] = input.take<std::uint8_t>();
}

void affine_from(double (&affine)[16], Input& input) {
    const auto kind = input.take<std::uint8_t>();
    for (int i = 0; i < 12; ++i)  // anything at all, or millimetres
        if (kind & 1)
            affine[i] = input.take<double>();
        else if ((kind >> 1) % 3 == 0)
            affine[i] = input.take<std::int16_t>() / 256.0;
    if (kind == 255) affine[12 + input.take<std::uint8_t>() % 4] = input.take<double>();
}

void stream(drt_session* session, Input& input) {
    drt_series_geometry geometry;
    drt_default_geometry(&geometry, sizeof geometry);
    geometry.type = input.take<std::uint8_t>();
    for (auto& size : geometry.shape) size = input.take<std::uint8_t>() == 255 ? input.take<std::int64_t>() : input.take<std::uint8_t>() % 48;
    affine_from(geometry.affine_lps_mm, input);
    if (input.take<std::uint8_t>() % 4 == 0) geometry.slope = input.take<double>(), geometry.intercept = input.take<double>();
    const bool finish = input.take<std::uint8_t>() % 8 == 0;
    drt_series* series = nullptr;
    if (drt_series_begin(session, &geometry, &series) != DRT_OK) return;
    std::vector<std::uint8_t> pixels;
    const auto [slices, rows, columns] = geometry.shape;
    for (int pushes = 0; pushes < 200 && !input.empty(); ++pushes) {
        drt_slice slice;
        drt_default_slice(&slice, sizeof slice);
        const auto bytes = static_cast<std::int64_t>(pixel_bytes[geometry.type]);
        std::int64_t column = input.take<std::uint8_t>() % 2 ? bytes : bytes + input.take<std::uint8_t>() % 8;
        std::int64_t row = column * columns + input.take<std::uint8_t>() % 16;
        if (rows * row > largest_buffer) break;
        pixels.resize(static_cast<std::size_t>(rows * row));
        fill(pixels, input);
        slice.pixels = pixels.data();
        if (input.take<std::uint8_t>() % 3 == 0) {  // from the last row upwards
            slice.pixels = pixels.data() + (rows - 1) * row;
            row = -row;
        }
        slice.strides[0] = row, slice.strides[1] = column;
        const auto index = input.take<std::uint8_t>();
        for (int i = 0; i < 3; ++i)
            slice.position_lps_mm[i] = geometry.affine_lps_mm[4 * i + 3] + index * geometry.affine_lps_mm[4 * i];
        if (index == 255) slice.position_lps_mm[0] = input.take<double>();
        drt_series_push(series, &slice);
    }
    std::size_t missing = 0;
    drt_series_missing(series, nullptr, 0, &missing);
    if (finish) drt_series_finish(series);  // the encoder takes most of the time
    drt_series_free(series);
}

void volume(drt_session* session, Input& input) {
    drt_volume given;
    drt_default_volume(&given, sizeof given);
    given.type = input.take<std::uint8_t>() % 8;
    std::int64_t bytes = static_cast<std::int64_t>(pixel_bytes[given.type]);
    for (auto& size : given.shape) bytes *= size = input.take<std::uint8_t>() % 40;
    affine_from(given.affine_lps_mm, input);
    std::vector<std::uint8_t> voxels(static_cast<std::size_t>(bytes) + 1);
    fill(voxels, input);
    given.voxels = voxels.data();
    if (input.take<std::uint8_t>() % 4 == 0) given.struct_size = input.take<std::uint8_t>();
    drt_session_run(session, &given);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static drt_session* const session = open_session();
    Input input(data, size);
    if (input.take<std::uint8_t>() % 16 == 0)
        volume(session, input);
    else
        stream(session, input);
    return 0;
}
