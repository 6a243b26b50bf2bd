// What the heads' graphs give becomes answers: checked, and brought from the grid to the patient. The same rules as
// decipher_rt/heads.py, boxes.py and label_map.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine.hpp"
#include "geometry.hpp"
#include "grid_plan.hpp"
#include "manifest.hpp"

namespace decipher {

// Edges along the axes of the grid.
struct FoundBox {
    double score;
    Vector center_lps_mm, size_mm;
};

struct HeadAnswer {
    std::string not_answered;          // why there is no answer; empty where there is one
    std::vector<float> values;         // probabilities, one value, or the volume of each label in ml
    std::vector<std::uint8_t> labels;  // of a segmentation, on the grid at the head's stride
    std::vector<FoundBox> boxes;       // those that reach the threshold, the best first
};

// A volume in the patient.
struct Placement {
    Shape shape{};
    Affine affine;
};

// The one output of a head's graph.
const char* head_output(HeadKind kind);

// `output` as the graph gave it.
HeadAnswer answer_of(const Head& head, const Output& output, const Preprocessing& spec, const Affine& grid, const Placement& source);

// Nearest neighbour: every voxel of the source takes the label that its centre lies in, 0 outside the grid.
void labels_on_source(const Head& head, const std::vector<std::uint8_t>& labels, const Preprocessing& spec, const Affine& grid,
                      const Placement& source, std::uint8_t* to);

}  // namespace decipher
