// A small volume that every test can run: a bright ellipsoid in air, with a little structure.
#pragma once

#include <decipher_rt.h>

#include <cmath>
#include <cstdint>
#include <vector>

struct Sample {
    std::int64_t depth = 24, height = 48, width = 40;
    std::vector<std::int16_t> voxels;
    drt_volume volume;

    Sample() : voxels(static_cast<std::size_t>(depth * height * width)) {
        std::size_t i = 0;
        for (std::int64_t d = 0; d < depth; ++d)
            for (std::int64_t h = 0; h < height; ++h)
                for (std::int64_t w = 0; w < width; ++w) {
                    const double z = 2.0 * static_cast<double>(d) / static_cast<double>(depth) - 1;
                    const double y = 2.0 * static_cast<double>(h) / static_cast<double>(height) - 1;
                    const double x = 2.0 * static_cast<double>(w) / static_cast<double>(width) - 1;
                    const bool inside = x * x + y * y + z * z < 0.8;
                    voxels[i++] = static_cast<std::int16_t>(inside ? 600 + 300 * std::sin(7 * x + 5 * y * z) : static_cast<double>((d * 7 + h * 3 + w) % 20));
                }
        drt_default_volume(&volume, sizeof volume);
        volume.voxels = voxels.data();
        volume.type = DRT_INT16;
        volume.shape[0] = depth, volume.shape[1] = height, volume.shape[2] = width;
        // Axial, feet to head: 6 x 4 x 4.5 mm.
        const double affine[16] = {0, 0, 4.5, -80, 0, 4, 0, -90, 6, 0, 0, -70, 0, 0, 0, 1};
        for (int k = 0; k < 16; ++k) volume.affine_lps_mm[k] = affine[k];
        volume.modality = "MR";
    }
};

inline std::vector<float> embedding_of(const drt_session* session) {
    std::size_t size = 0;
    if (drt_embedding(session, nullptr, 0, &size) != DRT_OK) return {};
    std::vector<float> values(size);
    if (drt_embedding(session, values.data(), values.size(), &size) != DRT_OK) return {};
    return values;
}

inline double cosine(const std::vector<float>& a, const std::vector<float>& b) {
    double ab = 0, aa = 0, bb = 0;
    for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
        ab += static_cast<double>(a[i]) * static_cast<double>(b[i]);
        aa += static_cast<double>(a[i]) * static_cast<double>(a[i]);
        bb += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    }
    return a.empty() || a.size() != b.size() ? 0 : ab / std::sqrt(aa * bb);
}
