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
    const HeadAnswer answer = Asked().answer({{1, 2, 2, 2}, {}, {1, 1, 1, 1, 2, 2, 0, 1}});
    CHECK((answer.labels == std::vector<std::uint8_t>{0, 0, 0, 0, 2, 2, 0, 1}));
    CHECK((answer.values == std::vector<float>{0, 1, 2}));
}

void maps_that_are_none_are_refused() {
    Asked asked;
    asked.spec.grid_shape = {1, 2, 4};
    const auto said = [&](const Output& output) { return CHECK_ERROR(asked.answer(output), DRT_ERROR_BUNDLE); };
    CHECK(said({{1, 1, 2, 4}, {}, {0, 0, 0, 3, 0, 0, 0, 0}}).find("a label beyond the 3") != std::string::npos);
    CHECK(said({{3}, {}, {0, 1, 2}}).find("a label map of shape (3), expected (1, 1, 2, 4)") != std::string::npos);
    CHECK(said({{1, 4, 2, 1}, {}, std::vector<std::uint8_t>(8)}).find("of shape (1, 4, 2, 1)") != std::string::npos);
    // As Python: whole numbers that come as floats are no labels.
    CHECK(said({{1, 1, 2, 4}, std::vector<float>(8), {}}).find("a label map of floats") != std::string::npos);
}

void boxes_that_are_none_are_refused() {
    Asked asked;
    asked.head.kind = HeadKind::localisation, asked.head.threshold = 0.5;
    const auto said = [&](const Output& output) { return CHECK_ERROR(asked.answer(output), DRT_ERROR_BUNDLE); };
    CHECK(asked.answer({{1, 1, 7}, {0.9F, 0, 0, 0, 1, 1, 1}, {}}).boxes.size() == 1);
    CHECK(asked.answer({{1, 0, 7}, {}, {}}).boxes.empty());
    CHECK(said({{1, 7, 2}, std::vector<float>(14), {}}).find("boxes of shape (1, 7, 2), expected (1, 7, 7)") != std::string::npos);
    CHECK(said({{2, 1, 7}, std::vector<float>(14), {}}).find("expected (1, 1, 7)") != std::string::npos);
    CHECK(said({{1, 1, 7}, {}, std::vector<std::uint8_t>(7)}).find("bytes, expected floats") != std::string::npos);
}

void values_have_the_shape_of_their_labels() {
    Asked asked;
    asked.head.kind = HeadKind::classification;
    CHECK((asked.answer({{1, 3}, {0.5F, 0.25F, 0.25F}, {}}).values == std::vector<float>{0.5F, 0.25F, 0.25F}));
    CHECK(CHECK_ERROR(asked.answer({{3, 1}, {0.5F, 0.25F, 0.25F}, {}}), DRT_ERROR_BUNDLE).find("of shape (3, 1), expected (1, 3)") != std::string::npos);
}

}  // namespace

int main() {
    labels_are_counted_where_the_source_is();
    maps_that_are_none_are_refused();
    boxes_that_are_none_are_refused();
    values_have_the_shape_of_their_labels();
}
