#include "graph_operators.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <string_view>

#include "error.hpp"
#include "protobuf_fields.hpp"

namespace decipher {

namespace {

constexpr std::string_view allowed[] = {
    "ExternalSource", "Resize", "Slice", "Squeeze", "Transpose", "_ArithmeticGenericOp", "_conditional__Merge", "_conditional__Split",
};

// dali.proto: PipelineDef.op is field 5, OpDef.name field 1.
constexpr std::uint64_t operator_field = 5, name_field = 1;

std::string_view text(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

}  // namespace

void check_operators(std::span<const std::byte> graph) {
    std::set<std::string> foreign;
    bool any = false, damaged = false;
    Fields fields(graph);
    while (const auto field = fields.next()) {
        if (field->number != operator_field) continue;
        Fields items(field->message);
        while (const auto item = items.next()) {
            if (item->number != name_field) continue;
            const std::string_view name = text(item->message);
            any = true;
            if (std::find(std::begin(allowed), std::end(allowed), name) == std::end(allowed)) foreign.emplace(name);
        }
        damaged = damaged || items.damaged();
    }
    if (damaged || fields.damaged())
        throw bundle_error("the preprocessing graph is damaged: it is no serialised DALI graph");
    if (any && foreign.empty()) return;
    std::string found;
    for (const std::string& name : foreign) found += (found.empty() ? "" : ", ") + name;
    throw bundle_error("the preprocessing graph holds " + (found.empty() ? "no operator" : found) +
                       ", which preprocessing does not use: it is not run");
}

}  // namespace decipher
