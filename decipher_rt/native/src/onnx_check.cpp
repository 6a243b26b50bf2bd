#include "onnx_check.hpp"

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "error.hpp"

namespace decipher {

namespace {

constexpr int deepest_graph = 32;

// The wire format of protocol buffers, as much as it takes to walk messages by field number.
class Fields {
public:
    explicit Fields(std::span<const std::byte> bytes) : rest_(bytes) {}

    struct Field {
        std::uint64_t number, value;
        std::span<const std::byte> message;
    };

    std::optional<Field> next() {
        if (rest_.empty()) return std::nullopt;
        const auto tag = varint();
        if (!tag) return std::nullopt;
        Field field{*tag >> 3, 0, {}};
        std::optional<std::uint64_t> size;
        switch (*tag & 7) {
            case 0: {
                const auto value = varint();
                if (!value) return std::nullopt;
                field.value = *value;
                return field;
            }
            case 1: size = 8; break;
            case 2: size = varint(); break;
            case 5: size = 4; break;
            default: return std::nullopt;
        }
        if (!size || *size > rest_.size()) return std::nullopt;
        field.message = rest_.first(static_cast<std::size_t>(*size));
        rest_ = rest_.subspan(static_cast<std::size_t>(*size));
        return field;
    }

private:
    std::optional<std::uint64_t> varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
            const auto byte = std::to_integer<std::uint64_t>(rest_.front());
            rest_ = rest_.subspan(1);
            value |= (byte & 0x7f) << shift;
            if ((byte & 0x80) == 0) return value;
        }
        rest_ = {};
        return std::nullopt;
    }

    std::span<const std::byte> rest_;
};

// Field numbers of onnx.proto.
constexpr std::uint64_t model_graph = 7, model_functions = 25, function_node = 7;
constexpr std::uint64_t graph_node = 1, graph_initializer = 5, graph_sparse_initializer = 15;
constexpr std::uint64_t node_attribute = 5;
constexpr std::uint64_t attribute_tensor = 5, attribute_graph = 6, attribute_tensors = 10, attribute_graphs = 11,
                        attribute_sparse_tensor = 22, attribute_sparse_tensors = 23;
constexpr std::uint64_t tensor_external_data = 13, tensor_data_location = 14;
constexpr std::uint64_t sparse_values = 1, sparse_indices = 2;

using Message = std::span<const std::byte>;

bool tensor_is_external(Message tensor) {
    for (Fields fields(tensor); const auto field = fields.next();)
        if (field->number == tensor_external_data || (field->number == tensor_data_location && field->value != 0)) return true;
    return false;
}

bool sparse_is_external(Message sparse) {
    for (Fields fields(sparse); const auto field = fields.next();)
        if ((field->number == sparse_values || field->number == sparse_indices) && tensor_is_external(field->message)) return true;
    return false;
}

bool graph_is_external(Message graph, int depth);

bool node_is_external(Message node, int depth) {
    for (Fields fields(node); const auto field = fields.next();) {
        if (field->number != node_attribute) continue;
        for (Fields items(field->message); const auto item = items.next();) {
            const bool external =
                ((item->number == attribute_tensor || item->number == attribute_tensors) && tensor_is_external(item->message)) ||
                ((item->number == attribute_sparse_tensor || item->number == attribute_sparse_tensors) && sparse_is_external(item->message)) ||
                ((item->number == attribute_graph || item->number == attribute_graphs) && graph_is_external(item->message, depth + 1));
            if (external) return true;
        }
    }
    return false;
}

bool graph_is_external(Message graph, int depth) {
    if (depth > deepest_graph) return true;  // no graph of ours nests: do not follow it
    for (Fields fields(graph); const auto field = fields.next();) {
        const bool external = (field->number == graph_node && node_is_external(field->message, depth)) ||
                              (field->number == graph_initializer && tensor_is_external(field->message)) ||
                              (field->number == graph_sparse_initializer && sparse_is_external(field->message));
        if (external) return true;
    }
    return false;
}

}  // namespace

void check_self_contained(const std::string& file, std::span<const std::byte> onnx) {
    bool external = false;
    for (Fields fields(onnx); const auto field = fields.next();) {
        if (field->number == model_graph) external = external || graph_is_external(field->message, 0);
        if (field->number != model_functions) continue;
        for (Fields items(field->message); const auto item = items.next();)
            external = external || (item->number == function_node && node_is_external(item->message, 0));
    }
    if (external)
        throw bundle_error(file + " takes weights from files outside it; export the bundle with the weights in the graphs");
}

}  // namespace decipher
