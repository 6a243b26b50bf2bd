// The manifest of a bundle, schema "decipher-rt/bundle/1": what decipher_rt/manifest.py accepts and refuses, here too.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace decipher {

struct Preprocessing {
    std::array<std::int64_t, 3> grid_shape{};   // (S, A, R) voxels
    std::array<double, 3> spacing_mm{};
    std::array<std::int64_t, 3> patch_shape{};
    std::vector<std::int64_t> token_buckets;    // ascending; the last is the number of patches
    std::array<double, 2> window_percentiles{0.5, 99.5};
    double tissue_level = 0.1;
    double min_tissue = 0.05;
    std::map<std::string, std::string> graphs;  // of DALI, for "cpu", "gpu", "cpu-inplane", "cpu-rest"

    std::array<std::int64_t, 3> patch_grid() const;
    std::int64_t patches() const;
    std::int64_t voxels() const { return grid_shape[0] * grid_shape[1] * grid_shape[2]; }
};

struct Encoder {
    std::int64_t width = 0;
    std::int64_t embedding_size = 0;
};

enum class HeadKind { classification, regression, segmentation, localisation };

struct Head {
    std::string name, file, description, unit;
    HeadKind kind = HeadKind::classification;
    std::vector<std::string> labels;
    std::int64_t stride = 1;  // of a segmentation
    double threshold = 0.5;   // of a localisation
};

// What texts are embedded with: checked here, run in Python only.
struct Text {
    std::string file, tokenizer;
};

struct Scope {
    std::string file, method, subject;
    double threshold = 0;
    std::vector<std::string> modalities{"MR"}, body_parts;  // no body parts: not judged
};

struct EngineFile {
    std::string target, precision, file;
    std::map<std::string, std::string> built_with;
};

struct Manifest {
    std::string name, version, intended_use, licence;
    Preprocessing preprocessing;
    Encoder encoder;
    std::vector<EngineFile> engines;
    std::vector<Head> heads;
    std::optional<Scope> scope;
    std::optional<Text> text;

    // Throws a bundle error that says what there is.
    const EngineFile& engine_file(std::string_view target, std::string_view precision) const;
    // Only the heads of these names, with commas between, stay; none of "". Throws an argument error that says what there is.
    void keep_heads(std::string_view names);
};

// Throws a bundle error that names the key, what was found and what was expected.
Manifest parse_manifest(std::string_view json);

}  // namespace decipher
