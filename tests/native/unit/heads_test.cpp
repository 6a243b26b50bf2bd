// What a head's graph gives becomes an answer, or is refused; that C and Python agree on it, test_parity.py says.
#include "heads.hpp"

#include <string>

#include "check.hpp"
#include "error.hpp"

using namespace decipher;

namespace {

// A grid of 2 x 2 x 2 voxels of 1 ml, and a source that holds the half at d = 1.
struct Asked {
    Head head;
    Preprocessing spec;
    Affine grid;
    Placement source;

    Asked() {
        head.name = "tissue", head.kind = HeadKind::segmentation, head.labels = {"background", "grey", "white"};
        spec.grid_shape = {2, 2, 2};
        for (std::size_t i = 0; i < 4; ++i) grid.rows[i][i] = i < 3 ? 10 : 1;
        source.shape = {1, 2, 2};
        source.affine = grid;
        source.affine.rows[0][3] = 10;
    }
    HeadAnswer answer(const Output& output) const { return answer_of(head, output, spec, grid, source); }
};

void labels_are_counted_where_the_source_is() {
    const HeadAnswer answer = Asked().answer({{}, {1, 1, 1, 1, 2, 2, 0, 1}});
    CHECK((answer.labels == std::vector<std::uint8_t>{0, 0, 0, 0, 2, 2, 0, 1}));
    CHECK((answer.values == std::vector<float>{0, 1, 2}));
}

void maps_that_are_none_are_refused() {
    const Asked asked;
    CHECK(CHECK_ERROR(asked.answer({{}, {0, 0, 0, 3, 0, 0, 0, 0}}), DRT_ERROR_ENGINE).find("a label beyond the 3") != std::string::npos);
    CHECK(CHECK_ERROR(asked.answer({{}, {0, 1, 2}}), DRT_ERROR_ENGINE).find("of 3 bytes, expected 8") != std::string::npos);
    // As Python: whole numbers that come as floats are no labels.
    CHECK(CHECK_ERROR(asked.answer({std::vector<float>(8), {}}), DRT_ERROR_ENGINE).find("of 0 bytes, expected 8") != std::string::npos);
}

}  // namespace

int main() {
    labels_are_counted_where_the_source_is();
    maps_that_are_none_are_refused();
}
