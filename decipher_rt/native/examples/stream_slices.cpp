// Answer for a folder of raw slices, pushed one by one as a reconstruction would.
//
//     stream_slices BUNDLE FOLDER
//
// FOLDER/geometry.txt holds three numbers (slices rows columns) and the sixteen of the affine (row-major, LPS mm);
// FOLDER/<position x>_<y>_<z>.raw are slices of int16, named after Image Position (Patient).

#include <decipher_rt.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

void check(drt_status status) {
    if (status != DRT_OK) throw std::runtime_error(drt_last_error());
}

struct Close {
    void operator()(drt_session* session) const { drt_session_close(session); }
    void operator()(drt_series* series) const { drt_series_free(series); }
};

void answer(const char* bundle, const std::filesystem::path& folder) {
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = 2;
    drt_session* opened = nullptr;
    check(drt_session_open(bundle, &params, &opened));
    const std::unique_ptr<drt_session, Close> session(opened);
    check(drt_session_warm_up(session.get()));

    drt_series_geometry geometry;
    drt_default_geometry(&geometry, sizeof geometry);
    geometry.type = DRT_INT16;
    geometry.modality = "MR";
    std::ifstream text(folder / "geometry.txt");
    for (std::int64_t& size : geometry.shape) text >> size;
    for (double& value : geometry.affine_lps_mm) text >> value;
    if (!text) throw std::runtime_error("geometry.txt needs 3 sizes and 16 numbers of an affine");
    drt_series* begun = nullptr;
    check(drt_series_begin(session.get(), &geometry, &begun));
    const std::unique_ptr<drt_series, Close> series(begun);

    std::vector<std::int16_t> pixels(static_cast<std::size_t>(geometry.shape[1] * geometry.shape[2]));
    const auto bytes = static_cast<std::streamsize>(pixels.size() * sizeof pixels[0]);
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {  // in whatever order
        if (entry.path().extension() != ".raw") continue;
        drt_slice slice;
        drt_default_slice(&slice, sizeof slice);
        auto& [x, y, z] = slice.position_lps_mm;
        if (std::sscanf(entry.path().stem().c_str(), "%lf_%lf_%lf", &x, &y, &z) != 3) continue;
        std::ifstream file(entry.path(), std::ios::binary);
        if (!file.read(reinterpret_cast<char*>(pixels.data()), bytes) || file.peek() != EOF)
            throw std::runtime_error(entry.path().string() + " does not hold a slice of " + std::to_string(bytes) + " bytes");
        slice.pixels = pixels.data();
        check(drt_series_push(series.get(), &slice));
    }
    std::size_t missing = 0;
    check(drt_series_missing(series.get(), nullptr, 0, &missing));
    std::cout << missing << " slices are missing\n";
    check(drt_series_finish(series.get()));

    drt_times times{};
    times.struct_size = sizeof times;
    check(drt_times_of_result(session.get(), &times));
    std::size_t size = 0;
    check(drt_embedding(session.get(), nullptr, 0, &size));
    std::vector<float> embedding(size);
    check(drt_embedding(session.get(), embedding.data(), size, &size));
    std::cout << "while slices came " << times.arrival_ms << " ms, after the last " << times.total_ms << " ms (encoder "
              << times.encode_ms << ")\nembedding";
    for (const float value : embedding) std::cout << ' ' << value;
    std::cout << '\n';
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: " << argv[0] << " BUNDLE FOLDER\n";
        return 2;
    }
    try {
        answer(argv[1], argv[2]);
        return 0;
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
