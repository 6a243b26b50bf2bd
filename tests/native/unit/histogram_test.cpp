#include "histogram.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "check.hpp"
#include "error.hpp"

using namespace decipher;

namespace {

// The definition: the smallest value that at least q percent of all values do not exceed.
template <class Value>
double by_sorting(std::vector<Value> values, double q) {
    std::sort(values.begin(), values.end());
    const double rank = std::max(1.0, std::ceil(q / 100.0 * static_cast<double>(values.size())));
    return static_cast<double>(values[static_cast<std::size_t>(rank) - 1]);
}

template <class Value>
void agrees_with_sorting(VoxelType type, const std::vector<Value>& values) {
    Histogram histogram(type), part(type);
    const std::size_t some = values.size() / 3;  // counted in pieces, as slices come
    histogram.count(values.data(), some);
    part.count(values.data() + some, values.size() - some);
    histogram.merge(part);
    std::span<const float> all;
    if constexpr (std::is_same_v<Value, float>) all = values;
    for (const double q : {0.0, 0.5, 12.5, 50.0, 99.5, 100.0}) {
        const Window window = histogram.percentiles({q, 100}, all);
        CHECK(window[0] == by_sorting(values, q));
        CHECK(window[1] == by_sorting(values, 100));
    }
}

template <class Value>
std::vector<Value> random_values(std::size_t number, double low, double high) {
    std::mt19937 generator(7);
    std::uniform_real_distribution<double> uniform(low, high);
    std::vector<Value> values(number);
    for (Value& value : values) value = static_cast<Value>(uniform(generator));
    return values;
}

}  // namespace

int main() {
    agrees_with_sorting(VoxelType::uint8, random_values<std::uint8_t>(10'001, 0, 256));
    agrees_with_sorting(VoxelType::uint16, random_values<std::uint16_t>(10'001, 0, 65536));
    agrees_with_sorting(VoxelType::int16, random_values<std::int16_t>(10'001, -32768, 32767));
    agrees_with_sorting(VoxelType::float32, random_values<float>(10'001, -1e-3, 1e4));
    agrees_with_sorting(VoxelType::float32, random_values<float>(999, -1, 1));
    agrees_with_sorting(VoxelType::float32, std::vector<float>{1.5f});
    agrees_with_sorting(VoxelType::int16, std::vector<std::int16_t>{-3, -3, 7});

    // A slice that is refused leaves no trace.
    std::vector<float> values = random_values<float>(100, 0, 1);
    Histogram histogram(VoxelType::float32);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        std::vector<float> spoilt = values;
        spoilt[50] = bad;
        const std::string message = CHECK_ERROR(histogram.count(spoilt.data(), spoilt.size()), DRT_ERROR_SERIES);
        CHECK(message.rfind("1 of 100 voxels are not finite", 0) == 0);
    }
    histogram.count(values.data(), values.size());
    CHECK(histogram.percentiles({50, 100}, values)[0] == by_sorting(values, 50));
}
