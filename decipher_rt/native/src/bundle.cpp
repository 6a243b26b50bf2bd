#include "bundle.hpp"

#include <algorithm>
#include <fstream>
#include <set>

#include "error.hpp"
#include "sha256.hpp"
#include "utf8.hpp"

namespace decipher {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view manifest_name = "manifest.json";
constexpr std::string_view sums_name = "SHA256SUMS";
constexpr std::uintmax_t largest_text = 16 << 20;  // a manifest or a list of sums is never larger
constexpr std::size_t digest_digits = 64;

std::string_view text_of(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

Bytes read_bytes(const fs::path& path, const std::string& where, const std::string& name) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
    if (size < 0) throw bundle_error(where + ": " + name + " cannot be read");
    Bytes bytes(static_cast<std::size_t>(size));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(bytes.data()), size);
    if (file.gcount() != size) throw bundle_error(where + ": " + name + " ended while it was read");
    return bytes;
}

Bytes read_text(const fs::path& folder, const std::string& where, std::string_view name) {
    const fs::path path = folder / name;
    std::error_code ignored;
    if (fs::symlink_status(path, ignored).type() != fs::file_type::regular)
        throw bundle_error(where + ": " + std::string(name) +
                           " is missing or no plain file; is this folder a bundle?");
    if (fs::file_size(path) > largest_text)
        throw bundle_error(where + ": " + std::string(name) + " is larger than " +
                           std::to_string(largest_text >> 20) + " MiB; export it again");
    Bytes bytes = read_bytes(path, where, std::string(name));
    if (!is_utf8(text_of(bytes)))
        throw bundle_error(where + ": " + std::string(name) + " is not UTF-8 text; export the bundle again");
    return bytes;
}

void check_listed(const fs::path& folder, const std::string& where, const Sums& sums) {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        const std::string name = entry.path().lexically_relative(folder).generic_string();
        if (entry.is_symlink())
            throw bundle_error(where + ": " + name + " is a symbolic link; a bundle holds plain files only");
        if (!entry.is_directory() && !sums.contains(name) && name != sums_name)
            throw bundle_error(where + ": " + name + " is not listed in SHA256SUMS; remove it or export again");
    }
    for (const auto& [name, digest] : sums)
        if (!fs::is_regular_file(folder / name))
            throw bundle_error(where + ": " + name + " is listed in SHA256SUMS and missing; copy the bundle again");
}

void check_names(const Manifest& manifest, const Sums& sums, const std::string& where) {
    std::vector<std::string> named;
    for (const EngineFile& engine : manifest.engines) named.push_back(engine.file);
    for (const Head& head : manifest.heads) named.push_back(head.file);
    for (const auto& [device, file] : manifest.preprocessing.graphs) named.push_back(file);
    if (manifest.scope) named.push_back(manifest.scope->file);
    if (manifest.text) named.insert(named.end(), {manifest.text->file, manifest.text->tokenizer});
    for (const std::string& name : named) {
        if (!is_plain_relative(name))
            throw bundle_error(where + ": '" + name + "' is not a plain relative path inside the bundle");
        if (!sums.contains(name))
            throw bundle_error(where + ": manifest.json names " + name + ", which is not in the bundle");
    }
    std::set<std::string> names;
    std::set<std::pair<std::string, HeadKind>> outputs;
    for (const Head& head : manifest.heads) {
        if (!names.insert(head.name).second) throw bundle_error(where + ": manifest.json: two heads have the same name");
        if (!outputs.emplace(head.file, head.kind).second)
            throw bundle_error(where + ": manifest.json: two heads of one kind share " + head.file +
                               ", whose graph has one output for each kind");
    }
}

std::string place(const fs::path& folder) { return "bundle " + folder.string(); }

void check_sum(const std::string& expected, const Digest& found, const std::string& where, const std::string& name) {
    if (hexadecimal(found) != expected)
        throw bundle_error(where + ": " + name + " differs from its sum in SHA256SUMS; copy the bundle again");
}

// Of a file that is not kept: through a buffer that stays in the processor's cache.
Digest sum_of(const fs::path& path, const std::string& where, const std::string& name) {
    constexpr std::size_t part = 256 << 10;
    std::ifstream file;
    file.rdbuf()->pubsetbuf(nullptr, 0);  // parts go where they are summed
    file.open(path, std::ios::binary);
    if (!file) throw bundle_error(where + ": " + name + " cannot be read");
    Bytes buffer(part);
    Sha256 sum;
    while (file) {
        file.read(reinterpret_cast<char*>(buffer.data()), part);
        sum.update(std::span(buffer).first(static_cast<std::size_t>(file.gcount())));
    }
    if (file.bad()) throw bundle_error(where + ": " + name + " ended while it was read");
    return sum.finish();
}

// Errors of the file system become bundle errors.
template <class Function>
auto reading(const std::string& where, Function&& function) {
    try {
        return function();
    } catch (const fs::filesystem_error& error) {
        throw bundle_error(where + ": " + error.code().message());
    }
}

}  // namespace

Bytes Bundle::content(const std::string& name) const {
    const std::string where = place(path);
    Bytes bytes = reading(where, [&] { return read_bytes(path / name, where, name); });
    check_sum(sums.at(name), decipher::sha256(bytes), where, name);
    return bytes;
}

const Bytes& Bundle::file(const std::string& name) const {
    const auto found = files.find(name);
    if (found == files.end()) throw bundle_error("bundle " + path.string() + ": " + name + " was not read");
    return found->second;
}

bool is_plain_relative(std::string_view name) {
    if (name.empty() || name.front() == '/' || name.find_first_of(std::string_view("\\\0", 2)) != name.npos) return false;
    for (std::size_t begin = 0; begin <= name.size();) {  // every part of the path
        const std::size_t end = std::min(name.find('/', begin), name.size());
        const std::string_view part = name.substr(begin, end - begin);
        if (part.empty() || part == "." || part == "..") return false;
        begin = end + 1;
    }
    return true;
}

Sums parse_sums(std::string_view text, const std::string& where) {
    Sums sums;
    std::size_t number = 0;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('\n'), text.size());
        std::string_view line = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        ++number;
        const std::string place = where + ": SHA256SUMS line " + std::to_string(number);
        const bool digest = std::min(line.find_first_not_of("0123456789abcdef"), line.size()) == digest_digits;
        const bool form = digest && line.size() > digest_digits + 2 && line[digest_digits] == ' ' &&
                          (line[digest_digits + 1] == ' ' || line[digest_digits + 1] == '*');
        if (!form) throw bundle_error(place + " is not '<sha256>  <file>'; export it again");
        const std::string_view name = line.substr(digest_digits + 2);
        if (!is_plain_relative(name) || name.find('\r') != name.npos)
            throw bundle_error(place + ": '" + std::string(name) + "' is not a plain relative path inside the bundle");
        sums[std::string(name)] = line.substr(0, digest_digits);
    }
    if (!sums.contains(std::string(manifest_name)))
        throw bundle_error(where + ": SHA256SUMS does not list manifest.json; export the bundle again");
    return sums;
}

Bundle open_bundle(const fs::path& folder) {
    const std::string where = place(folder);
    return reading(where, [&] {
        if (!fs::is_directory(folder))
            throw bundle_error(where + ": no such folder; make one with 'decipher-rt export'");
        const Bytes sums_text = read_text(folder, where, sums_name);
        Bundle bundle{folder, {}, {}, hexadecimal(sha256(sums_text)), parse_sums(text_of(sums_text), where), {}};
        check_listed(folder, where, bundle.sums);
        const Bytes manifest_text = read_text(folder, where, manifest_name);
        check_sum(bundle.sums.at(std::string(manifest_name)), sha256(manifest_text), where, std::string(manifest_name));
        try {
            bundle.manifest_text = text_of(manifest_text);
            bundle.manifest = parse_manifest(bundle.manifest_text);
        } catch (const Error& error) {
            throw bundle_error(where + ": " + error.what());
        }
        check_names(bundle.manifest, bundle.sums, where);
        return bundle;
    });
}

FileCheck::FileCheck(const Bundle& bundle, const std::string& encoder) : folder_(bundle.path), where_(place(bundle.path)) {
    std::set<std::string> done = {std::string(manifest_name)};
    for (const EngineFile& engine : bundle.manifest.engines)
        if (engine.file != encoder) done.insert(engine.file);
    for (const Head& head : bundle.manifest.heads) done.erase(head.file);
    if (bundle.manifest.scope) done.erase(bundle.manifest.scope->file);
    for (const auto& [name, content] : bundle.files) done.insert(name);
    std::vector<std::pair<std::uintmax_t, std::string>> names;
    reading(where_, [&] {
        for (const auto& [name, digest] : bundle.sums)
            if (!done.contains(name)) names.emplace_back(fs::file_size(folder_ / name), name);
    });
    std::sort(names.rbegin(), names.rend());  // the largest first: threads then end together
    for (const auto& [size, name] : names) files_.emplace_back(name, bundle.sums.at(name));
}

bool FileCheck::next() {
    const std::size_t i = next_.fetch_add(1);
    if (i >= files_.size()) return false;
    const auto& [name, digest] = files_[i];
    check_sum(digest, sum_of(folder_ / name, where_, name), where_, name);
    return true;
}

void FileCheck::one() { next(); }

void FileCheck::rest() {
    while (next()) {
    }
}

}  // namespace decipher
