#include "manifest.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "error.hpp"
#include "geometry.hpp"

namespace decipher {

namespace {

using Json = nlohmann::json;
using Keys = std::vector<std::string_view>;

constexpr std::string_view schema = "decipher-rt/bundle/1";
constexpr std::size_t longest_value = 60;
constexpr std::int64_t largest_size = std::int64_t{1} << 20;  // of one axis: products stay far from overflow
constexpr std::int64_t most_of_an_encoder = 1'000'000'000'000'000;  // in any of its sizes
constexpr std::size_t most_labels = 256;  // of a segmentation: its map is uint8
constexpr std::size_t longest_file_name = 64;
constexpr int deepest_nesting = 64;  // lists and objects in one another; what shows a value calls itself for each
const Keys kinds = {"classification", "regression", "segmentation", "localisation"};  // in the order of HeadKind
const Keys precisions = {"fp32", "fp16", "bf16", "int8"};

[[noreturn]] void refuse(const std::string& key, const std::string& found, const std::string& expected) {
    throw bundle_error("manifest.json: " + key + " is " + found.substr(0, longest_value) + ", expected " + expected);
}

std::string shown(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string joined(const Keys& names) {
    std::string text;
    for (const std::string_view name : names) text += (text.empty() ? "" : ", ") + std::string(name);
    return text;
}

std::string number_text(double value) {
    std::array<char, 32> text;
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
    return {text.data(), end};
}

template <class Values>
std::string list_text(const Values& values) {
    std::string text;
    for (const auto value : values) text += (text.empty() ? "" : ", ") + number_text(static_cast<double>(value));
    return "(" + text + ")";
}

// One JSON object: every key is read once, and unknown ones are refused.
class Object {
public:
    Object(const Json& value, std::string key, const Keys& required, const Keys& optional) : value_(value), key_(std::move(key)) {
        if (!value.is_object()) refuse(key_, shown(value), "an object");
        Keys known = required;
        known.insert(known.end(), optional.begin(), optional.end());
        for (const auto& [name, item] : value.items())
            if (std::find(known.begin(), known.end(), name) == known.end())
                refuse(key_, "'" + name + "'", "no keys other than " + joined(known));
        for (const std::string_view name : required)
            if (!value.contains(name)) refuse(at(name), "nothing", "a value");
    }

    bool has(std::string_view name) const { return value_.contains(name); }
    const Json& operator[](std::string_view name) const { return value_.at(std::string(name)); }
    std::string at(std::string_view name) const { return key_ + "." + std::string(name); }

    std::string text(std::string_view name) const { return text_of((*this)[name], at(name)); }
    std::string text_or(std::string_view name, std::string otherwise) const {
        return has(name) ? text(name) : std::move(otherwise);
    }
    std::string one_of(std::string_view name, const Keys& choices) const {
        const Json& value = (*this)[name];
        if (!value.is_string() || std::find(choices.begin(), choices.end(), value.get_ref<const std::string&>()) == choices.end())
            refuse(at(name), shown(value), "one of " + joined(choices));
        return value.get<std::string>();
    }
    std::int64_t integer(std::string_view name) const { return integer_of((*this)[name], at(name)); }
    double number(std::string_view name) const { return number_of((*this)[name], at(name)); }

    const Json& list(std::string_view name, std::size_t entries = 0) const {
        const Json& value = (*this)[name];
        if (!value.is_array()) refuse(at(name), shown(value), "a list");
        if (entries != 0 && value.size() != entries)
            refuse(at(name), shown(value), std::to_string(entries) + " entries");
        return value;
    }
    template <class Value, class Read>
    void read_list(std::string_view name, Value& values, Read&& read) const {
        const Json& items = list(name);
        for (std::size_t i = 0; i < items.size(); ++i)
            values.push_back(read(items[i], at(name) + "[" + std::to_string(i) + "]"));
    }
    template <class Type, std::size_t N, class Read>
    void read_array(std::string_view name, std::array<Type, N>& values, Read&& read) const {
        const Json& items = list(name, N);
        for (std::size_t i = 0; i < N; ++i) values[i] = read(items[i], at(name) + "[" + std::to_string(i) + "]");
    }
    std::map<std::string, std::string> texts(std::string_view name) const {
        std::map<std::string, std::string> result;
        expect_object(name);
        for (const auto& [key, item] : (*this)[name].items()) result[key] = text_of(item, at(name) + "." + key);
        return result;
    }
    void numbers(std::string_view name) const {
        expect_object(name);
        for (const auto& [key, item] : (*this)[name].items()) number_of(item, at(name) + "." + key);
    }
    void expect_object(std::string_view name) const {
        if (has(name) && !(*this)[name].is_object()) refuse(at(name), shown((*this)[name]), "an object");
    }

    static std::string text_of(const Json& value, const std::string& key) {
        if (!value.is_string()) refuse(key, shown(value), "a str");
        return value.get<std::string>();
    }
    static std::int64_t integer_of(const Json& value, const std::string& key) {
        if (!value.is_number_integer()) refuse(key, shown(value), "a int");
        if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max())
            refuse(key, shown(value), "a int of 64 bits");
        return value.get<std::int64_t>();
    }
    static double number_of(const Json& value, const std::string& key) {
        if (!value.is_number()) refuse(key, shown(value), "a number");
        return value.get<double>();
    }

private:
    const Json& value_;
    std::string key_;
};

void check(const Preprocessing& spec) {
    const auto& [grid, spacing, patch, buckets, percentiles, level, least, graphs] = spec;
    bool multiple = true, sized = true;
    for (std::size_t i = 0; i < 3; ++i) {
        multiple = multiple && patch[i] >= 1 && grid[i] >= 1 && grid[i] <= largest_size && grid[i] % patch[i] == 0;
        sized = sized && spacing[i] >= least_spacing_mm && spacing[i] <= largest_spacing_mm;
    }
    if (!multiple)
        throw bundle_error("manifest.json: preprocessing.grid_shape " + list_text(grid) +
                           " must be a multiple of patch_shape " + list_text(patch));
    if (!sized)
        throw bundle_error("manifest.json: preprocessing.spacing_mm " + list_text(spacing) + " must be " +
                           number_text(least_spacing_mm) + " to " + number_text(largest_spacing_mm) + " mm");
    const bool ascending = std::adjacent_find(buckets.begin(), buckets.end(), std::greater_equal<>()) == buckets.end();
    if (buckets.empty() || !ascending || buckets.front() < 1 || buckets.back() != spec.patches())
        throw bundle_error("manifest.json: preprocessing.token_buckets " + list_text(buckets) +
                           " must ascend and end with the number of patches, " + std::to_string(spec.patches()));
    if (!(0 <= spec.tissue_level && spec.tissue_level <= 1 && 0 <= spec.min_tissue && spec.min_tissue <= 1))
        throw bundle_error("manifest.json: preprocessing.tissue_level " + number_text(spec.tissue_level) + " and min_tissue " +
                           number_text(spec.min_tissue) + " must be shares, 0 to 1");
    if (!(0 <= percentiles[0] && percentiles[0] < percentiles[1] && percentiles[1] <= 100))
        throw bundle_error("manifest.json: preprocessing.window_percentiles " + list_text(percentiles) +
                           " must ascend within 0..100");
}

void check(const Head& head, const Preprocessing& spec) {
    const std::string where = "manifest.json: head " + head.name;
    if (head.kind == HeadKind::classification && head.labels.empty()) throw bundle_error(where + " has no labels");
    if (std::set(head.labels.begin(), head.labels.end()).size() < head.labels.size()) throw bundle_error(where + " has two labels of one name");
    if (head.kind == HeadKind::segmentation) {
        if (head.labels.size() < 2 || head.labels.size() > most_labels)
            throw bundle_error(where + " has " + std::to_string(head.labels.size()) + " labels, expected 2 to " +
                               std::to_string(most_labels));
        const bool divides = head.stride >= 1 && std::all_of(spec.grid_shape.begin(), spec.grid_shape.end(),
                                                             [&](std::int64_t size) { return size % head.stride == 0; });
        if (!divides)
            throw bundle_error(where + " has stride " + std::to_string(head.stride) + ", which must divide grid_shape " +
                               list_text(spec.grid_shape));
        const bool plain = !head.name.empty() && head.name.size() <= longest_file_name &&
                           std::all_of(head.name.begin(), head.name.end(), [](char c) {
                               return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                                      c == '_' || c == '.' || c == '-';
                           });
        if (!plain)
            throw bundle_error(where + ": its name must be of letters, digits, '_', '.' and '-': it names a file");
    }
    if (head.kind == HeadKind::localisation && !(head.threshold >= 0 && head.threshold <= 1))
        throw bundle_error(where + " has threshold " + number_text(head.threshold) + ", expected 0 to 1");
}

Preprocessing read_preprocessing(const Json& json) {
    const Object object(json, "manifest.preprocessing", {"grid_shape", "spacing_mm", "patch_shape", "token_buckets"},
                        {"window_percentiles", "tissue_level", "min_tissue", "graphs"});
    Preprocessing spec;
    object.read_array("grid_shape", spec.grid_shape, Object::integer_of);
    object.read_array("spacing_mm", spec.spacing_mm, Object::number_of);
    object.read_array("patch_shape", spec.patch_shape, Object::integer_of);
    object.read_list("token_buckets", spec.token_buckets, Object::integer_of);
    if (object.has("window_percentiles"))
        object.read_array("window_percentiles", spec.window_percentiles, Object::number_of);
    if (object.has("tissue_level")) spec.tissue_level = object.number("tissue_level");
    if (object.has("min_tissue")) spec.min_tissue = object.number("min_tissue");
    if (object.has("graphs")) spec.graphs = object.texts("graphs");
    return spec;
}

Encoder read_encoder(const Json& json) {
    const Object object(json, "manifest.encoder", {"width", "embedding_size", "parameters"}, {"config"});
    const Encoder encoder{object.integer("width"), object.integer("embedding_size")};
    for (const auto& [name, least] : {std::pair("width", 1), {"embedding_size", 1}, {"parameters", 0}}) {
        const std::int64_t number = object.integer(name);
        if (number < least || number > most_of_an_encoder)
            throw bundle_error("manifest.json: encoder." + std::string(name) + " is " + std::to_string(number) + ", which cannot be");
    }
    object.expect_object("config");
    return encoder;
}

Head read_head(const Json& json, const std::string& key) {
    const Object object(json, key, {"name", "kind", "file"},
                        {"description", "labels", "unit", "stride", "threshold"});
    Head head;
    head.name = object.text("name");
    const std::string kind = object.one_of("kind", kinds);
    head.kind = static_cast<HeadKind>(std::find(kinds.begin(), kinds.end(), kind) - kinds.begin());
    head.file = object.text("file");
    head.description = object.text_or("description", "");
    if (object.has("labels")) object.read_list("labels", head.labels, Object::text_of);
    if (object.has("stride")) head.stride = object.integer("stride");
    if (object.has("threshold")) head.threshold = object.number("threshold");
    head.unit = object.text_or("unit", "");
    return head;
}

std::optional<Scope> read_scope(const Json& json) {
    if (json.is_null()) return std::nullopt;
    const Object object(json, "manifest.scope", {"file", "method", "threshold"}, {"modalities", "body_parts", "subject"});
    Scope scope;
    scope.file = object.text("file");
    scope.method = object.text("method");
    scope.threshold = object.number("threshold");
    scope.subject = object.text_or("subject", "");
    if (object.has("modalities")) {
        scope.modalities.clear();
        object.read_list("modalities", scope.modalities, Object::text_of);
    }
    if (object.has("body_parts")) object.read_list("body_parts", scope.body_parts, Object::text_of);
    return scope;
}

Text read_text(const Json& json) {
    const Object object(json, "manifest.text", {"file", "tokenizer", "max_tokens", "logit_scale"}, {"tolerance"});
    if (object.integer("max_tokens") < 1)
        throw bundle_error("manifest.json: text.max_tokens is " + shown(object["max_tokens"]) + ", expected at least 1");
    if (!(object.number("logit_scale") > 0))
        throw bundle_error("manifest.json: text.logit_scale is " + shown(object["logit_scale"]) +
                           ", expected a positive number");
    if (object.has("tolerance") && !(object.number("tolerance") > 0))
        throw bundle_error("manifest.json: text.tolerance is " + shown(object["tolerance"]) + ", expected a positive number");
    return {object.text("file"), object.text("tokenizer")};
}

EngineFile read_engine(const Json& json, const std::string& key) {
    const Object object(json, key, {"target", "precision", "file"}, {"built_with"});
    EngineFile engine{object.text("target"), object.one_of("precision", precisions), object.text("file"), {}};
    if (object.has("built_with")) engine.built_with = object.texts("built_with");
    return engine;
}

// Kept by people and by `decipher-rt inspect`; here only their form is checked, so that both refuse the same files.
int check_numerics(const Json& json, const std::string& key) {
    const Object object(json, key,
                        {"precision", "embedding_cosine", "embedding_max_error", "patch_max_error", "heads_max_error",
                         "tolerance"},
                        {"target", "patch_cosine", "metrics"});
    object.one_of("precision", precisions);
    object.text_or("target", "");
    if (object.has("patch_cosine") && !object["patch_cosine"].is_null()) object.number("patch_cosine");
    if (object.has("metrics")) object.numbers("metrics");
    for (const auto* name :
         {"embedding_cosine", "embedding_max_error", "patch_max_error", "heads_max_error"})
        object.number(name);
    if (const double tolerance = object.number("tolerance"); !(tolerance > 0))
        throw bundle_error("manifest.json: numerics: tolerance is " + number_text(tolerance) + ", expected a positive number");
    return 0;
}

Manifest read_manifest(const Json& json) {
    if (json.is_object() && (!json.contains("schema") || json["schema"] != schema))
        throw bundle_error("manifest.json: schema is " + (json.contains("schema") ? shown(json["schema"]) : "absent") +
                           ", this runtime reads '" + std::string(schema) + "'");
    const Object object(
        json, "manifest", {"name", "version", "intended_use", "licence", "preprocessing", "encoder", "engines"},
        {"heads", "scope", "text", "golden", "numerics", "metrics", "provenance", "schema"});
    Manifest manifest;
    manifest.name = object.text("name");
    manifest.version = object.text("version");
    manifest.intended_use = object.text("intended_use");
    manifest.licence = object.text("licence");
    manifest.preprocessing = read_preprocessing(object["preprocessing"]);
    manifest.encoder = read_encoder(object["encoder"]);
    object.read_list("engines", manifest.engines, read_engine);
    if (object.has("heads")) object.read_list("heads", manifest.heads, read_head);
    if (object.has("scope")) manifest.scope = read_scope(object["scope"]);
    if (object.has("text") && !object["text"].is_null()) manifest.text = read_text(object["text"]);
    object.text_or("golden", "");
    std::vector<int> checked;
    if (object.has("numerics")) object.read_list("numerics", checked, check_numerics);
    object.expect_object("metrics");
    object.expect_object("provenance");
    check(manifest.preprocessing);
    for (const Head& head : manifest.heads) check(head, manifest.preprocessing);
    return manifest;
}

}  // namespace

std::array<std::int64_t, 3> Preprocessing::patch_grid() const {
    return {grid_shape[0] / patch_shape[0], grid_shape[1] / patch_shape[1], grid_shape[2] / patch_shape[2]};
}

std::int64_t Preprocessing::patches() const {
    const auto [d, h, w] = patch_grid();
    return d * h * w;
}

const EngineFile& Manifest::engine_file(std::string_view target, std::string_view precision) const {
    std::string present;
    for (const EngineFile& engine : engines) {
        if (engine.target == target && engine.precision == precision) return engine;
        present += (present.empty() ? "" : ", ") + engine.target + " " + engine.precision;
    }
    throw bundle_error("bundle " + name + ": no " + std::string(precision) + " encoder for " + std::string(target) +
                       "; it holds: " + present);
}

void Manifest::keep_heads(std::string_view names) {
    std::set<std::string, std::less<>> present, wanted;
    for (const Head& head : heads) present.insert(head.name);
    for (std::size_t begin = 0, end; !names.empty() && begin <= names.size(); begin = end + 1) {
        end = std::min(names.find(',', begin), names.size());
        const std::string one(names.substr(begin, end - begin));
        if (!present.contains(one)) {
            std::string all;
            for (const Head& head : heads) all += (all.empty() ? "" : ", ") + head.name;
            throw argument_error("bundle " + name + ": no head '" + one_line(one) + "'; it has " + (all.empty() ? "none" : all));
        }
        wanted.insert(one);
    }
    std::erase_if(heads, [&](const Head& head) { return !wanted.contains(head.name); });
}

Manifest parse_manifest(std::string_view json) {
    if (json.starts_with("\xEF\xBB\xBF")) throw bundle_error("manifest.json is not JSON (it begins with a byte order mark); export the bundle again");
    Json document;
    try {
        document = Json::parse(json, [](int depth, Json::parse_event_t event, const Json&) {
            if (depth >= deepest_nesting && (event == Json::parse_event_t::array_start || event == Json::parse_event_t::object_start))
                throw bundle_error("manifest.json nests more than " + std::to_string(deepest_nesting) +
                                   " lists and objects; export the bundle again");
            return true;
        });
    } catch (const Json::exception& error) {  // also a number beyond a double
        throw bundle_error("manifest.json is not JSON (" + one_line(error.what()) + "); export the bundle again");
    }
    return read_manifest(document);
}

}  // namespace decipher
