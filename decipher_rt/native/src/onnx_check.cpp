#include "onnx_check.hpp"

#include <cstdint>

#include "error.hpp"
#include "protobuf_fields.hpp"

namespace decipher {

namespace {

constexpr int deepest_graph = 32;

// Field numbers of onnx.proto.
constexpr std::uint64_t model_graph = 7, model_functions = 25, function_node = 7;
constexpr std::uint64_t graph_node = 1, graph_initializer = 5, graph_sparse_initializer = 15;
constexpr std::uint64_t node_attribute = 5;
constexpr std::uint64_t attribute_tensor = 5, attribute_graph = 6, attribute_tensors = 10, attribute_graphs = 11,
                        attribute_sparse_tensor = 22, attribute_sparse_tensors = 23;
constexpr std::uint64_t tensor_external_data = 13, tensor_data_location = 14;
constexpr std::uint64_t sparse_values = 1, sparse_indices = 2;

using Message = std::span<const std::byte>;

// Whether the predicate holds for any field, or the message is damaged: what cannot be walked is not trusted.
template <class Predicate>
bool any_field(Message message, Predicate&& predicate) {
    Fields fields(message);
    while (const auto field = fields.next())
        if (predicate(*field)) return true;
    return fields.damaged();
}

bool tensor_is_external(Message tensor) {
    return any_field(tensor, [](const Fields::Field& field) {
        return field.number == tensor_external_data || (field.number == tensor_data_location && field.value != 0);
    });
}

bool sparse_is_external(Message sparse) {
    return any_field(sparse, [](const Fields::Field& field) {
        return (field.number == sparse_values || field.number == sparse_indices) && tensor_is_external(field.message);
    });
}

bool graph_is_external(Message graph, int depth);

bool attribute_is_external(Message attribute, int depth) {
    return any_field(attribute, [depth](const Fields::Field& field) {
        switch (field.number) {
            case attribute_tensor:
            case attribute_tensors: return tensor_is_external(field.message);
            case attribute_sparse_tensor:
            case attribute_sparse_tensors: return sparse_is_external(field.message);
            case attribute_graph:
            case attribute_graphs: return graph_is_external(field.message, depth + 1);
            default: return false;
        }
    });
}

bool node_is_external(Message node, int depth) {
    return any_field(node, [depth](const Fields::Field& field) {
        return field.number == node_attribute && attribute_is_external(field.message, depth);
    });
}

bool graph_is_external(Message graph, int depth) {
    if (depth > deepest_graph) return true;  // no graph of ours nests: do not follow it
    return any_field(graph, [depth](const Fields::Field& field) {
        switch (field.number) {
            case graph_node: return node_is_external(field.message, depth);
            case graph_initializer: return tensor_is_external(field.message);
            case graph_sparse_initializer: return sparse_is_external(field.message);
            default: return false;
        }
    });
}

bool function_is_external(Message function) {
    return any_field(function, [](const Fields::Field& field) {
        return field.number == function_node && node_is_external(field.message, 0);
    });
}

}  // namespace

void check_self_contained(const std::string& file, std::span<const std::byte> onnx) {
    const bool external = any_field(onnx, [](const Fields::Field& field) {
        return (field.number == model_graph && graph_is_external(field.message, 0)) ||
               (field.number == model_functions && function_is_external(field.message));
    });
    if (external)
        throw bundle_error(file + " is no ONNX file, or takes weights from files outside it; export the bundle with the weights in the graphs");
}

}  // namespace decipher
