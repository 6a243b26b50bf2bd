#include "patch_embed.hpp"

#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <nlohmann/json.hpp>
#include <sstream>

#include "error.hpp"
#include "npz.hpp"

namespace decipher {

namespace {

using Json = nlohmann::json;

constexpr const char* folder = "kernels/";
constexpr const char* launch_data = "kernels/kernels.json";
constexpr const char* constants_file = "kernels/patch_embed3d.npz";
constexpr const char* schema = "decipher-rt/kernels/1";
constexpr const char* kernel_name = "patch_embed3d";

// Whatever the document lacks or holds in another form is one kind of damage.
template <class Read>
auto reading(Read&& read) {
    try {
        return read();
    } catch (const Json::exception& error) {
        throw bundle_error(std::string(launch_data) + " is not understood (" + one_line(error.what()) + "); export the bundle again");
    }
}

// The launch data of the kernel for a card.
Json find_kernel(const Bytes& kernels_json, int architecture) {
    return reading([&] {
        const Json document = Json::parse(reinterpret_cast<const char*>(kernels_json.data()),
                                          reinterpret_cast<const char*>(kernels_json.data() + kernels_json.size()));
        if (document.at("schema") != schema) throw bundle_error(std::string(launch_data) + ": of another schema than " + schema);
        std::map<std::string, Json> kernels;
        std::vector<std::string> known;
        std::string shown;
        for (const Json& kernel : document.at("kernels")) {
            if (kernel.at("kernel") != kernel_name) continue;
            known.push_back(kernel.at("architecture"));
            kernels[known.back()] = kernel;
            shown += (shown.empty() ? "" : ", ") + known.back();
        }
        const std::string serving = serving_architecture(known, architecture);
        if (serving.empty())
            throw engine_error("the bundle's kernels are for " + (known.empty() ? "no card" : shown) + ", this card is sm_" +
                               std::to_string(architecture) + "; export it again");
        return kernels.at(serving);
    });
}

}  // namespace

std::string serving_architecture(const std::vector<std::string>& known, int card) {
    int nearest = 0;
    std::string serving;
    for (const std::string& name : known) {
        const std::string number = name.rfind("sm_", 0) == 0 ? name.substr(3) : "";
        const int of = std::atoi(number.c_str());
        const bool fits = number == std::to_string(of) ? of / 10 == card / 10 && of <= card : of == card;
        if (!fits || of <= nearest) continue;
        nearest = of;
        serving = name;
    }
    return serving;
}

void check_driver(const std::string& kernel, const std::string& needed, int version) {
    int major = 0, minor = 0;
    char dot = 0;
    std::istringstream stated(needed);
    stated.imbue(std::locale::classic());  // a host's global one may take 12.0 for 120
    stated >> major >> dot >> minor;
    if (1000 * major + 10 * minor > version)
        throw engine_error("the bundle's " + kernel + " needs a driver of CUDA " + needed + " or later, this one is of CUDA " +
                           std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) +
                           ": update the driver, or open with device = DRT_CPU");
}

// The driver is not told where a cubin ends: it believes what the file says of itself.
void check_cubin(const std::string& name, std::span<const std::byte> content) {
    const auto within = [&](std::uint64_t begin, std::uint64_t size) { return begin <= content.size() && size <= content.size() - begin; };
    Elf64_Ehdr header{};
    bool whole = content.size() > sizeof header;
    if (whole) std::memcpy(&header, content.data(), sizeof header);
    whole = whole && std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_ident[EI_CLASS] == ELFCLASS64 &&
            header.e_shentsize == sizeof(Elf64_Shdr) && within(header.e_shoff, header.e_shnum * sizeof(Elf64_Shdr)) &&
            within(header.e_phoff, std::uint64_t{header.e_phnum} * header.e_phentsize);
    for (std::uint64_t i = 0; whole && i < header.e_shnum; ++i) {
        Elf64_Shdr section{};
        std::memcpy(&section, content.data() + header.e_shoff + i * sizeof section, sizeof section);
        const bool has_content = section.sh_type < SHT_LOOS && section.sh_type != SHT_NOBITS;  // CUDA's own may have none
        whole = !has_content || within(section.sh_offset, section.sh_size);
    }
    if (!whole) throw bundle_error(name + ": is not a whole cubin; export the bundle again");
}

PatchEmbed::PatchEmbed(const Bundle& bundle, CudaDevice& device) : device_(device) {
    const Json kernel = find_kernel(bundle.file(launch_data), device.architecture());
    const CudaDriver& driver = device.driver();
    const auto scalar = [](const Json& json) {
        return Scalar{json.at("times").get<std::int64_t>(), std::max<std::int64_t>(json.at("block").get<std::int64_t>(), 1), json.at("size").is_null() ? "" : json.at("size").get<std::string>()};
    };
    std::string entry, cubin, needed;
    bool raise_limit = false;
    reading([&] {
        entry = kernel.at("entry"), cubin = folder + kernel.at("cubin").get<std::string>();
        threads_ = kernel.at("threads"), shared_bytes_ = kernel.at("shared_memory_bytes");
        raise_limit = kernel.at("raise_shared_memory_limit");
        needed = kernel.value("driver", "");  // what was exported earlier does not say it
        for (const Json& axis : kernel.at("grid")) grid_.push_back(scalar(axis));
        for (const Json& item : kernel.at("arguments")) {
            if (item.contains("null"))
                arguments_.push_back({Argument::Kind::null, {}, {}, 1});
            else if (item.contains("int32"))
                arguments_.push_back({Argument::Kind::integer, scalar(item.at("int32")), {}, 1});
            else
                arguments_.push_back({Argument::Kind::pointer, {}, item.at("name"), std::max<std::uint64_t>(item.at("align").get<std::uint64_t>(), 1)});
        }
        return 0;
    });
    check_driver(kernel_name, needed, device.version());
    if (grid_.size() != 3) throw bundle_error(std::string(launch_data) + ": a launch has three axes");
    check_cubin(cubin, bundle.file(cubin));
    CUmodule module = nullptr;
    driver.check(driver.load_module(&module, bundle.file(cubin).data()), "cuModuleLoadData");
    module_ = {module, Unload{&driver}};
    driver.check(driver.module_function(&function_, module, entry.c_str()), "cuModuleGetFunction");
    if (raise_limit)
        driver.check(driver.set_attribute(function_, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(shared_bytes_)), "cuFuncSetAttribute");
    const auto arrays = read_npz(constants_file, bundle.file(constants_file));  // read by the stream until it is waited for
    for (const auto& [name, array] : arrays) {
        constants_.try_emplace(name, device, array.data.size()).first->second.upload(array.data.data(), array.data.size());
        if (name == "bias" && array.shape.size() == 1) width_ = array.shape[0];
    }
    driver.check(driver.synchronize(device.stream()), "cuStreamSynchronize");
    if (width_ < 1) throw bundle_error(std::string(constants_file) + ": holds no bias; export the bundle again");
}

std::int64_t PatchEmbed::evaluate(const Scalar& scalar, std::int64_t kept) {
    // One volume at a time: the batch is 1 and rows are tokens.
    const std::int64_t size = scalar.size.empty() || scalar.size == "batch" ? 1 : kept;
    return scalar.times * ((size + scalar.block - 1) / scalar.block);
}

void PatchEmbed::launch(const DeviceBuffer& volume, const DeviceBuffer& window, const DeviceBuffer& tokens, std::int64_t kept,
                        const DeviceBuffer& out) {
    const std::map<std::string, const DeviceBuffer*> given = {{"volume", &volume}, {"window", &window}, {"tokens", &tokens}, {"out", &out}};
    std::vector<CUdeviceptr> pointers(arguments_.size());
    std::vector<std::int32_t> integers(arguments_.size());
    std::vector<void*> places(arguments_.size());
    for (std::size_t i = 0; i < arguments_.size(); ++i) {
        const Argument& argument = arguments_[i];
        places[i] = &pointers[i];
        if (argument.kind == Argument::Kind::integer) {
            integers[i] = static_cast<std::int32_t>(evaluate(argument.integer, kept));
            places[i] = &integers[i];
        } else if (argument.kind == Argument::Kind::pointer) {
            const auto found = given.find(argument.name);
            const auto constant = constants_.find(argument.name);
            if (found == given.end() && constant == constants_.end())
                throw bundle_error(std::string(launch_data) + ": the kernel takes " + argument.name + ", which nothing gives");
            pointers[i] = found != given.end() ? found->second->address() : constant->second.address();
            if (pointers[i] % argument.alignment != 0)
                throw engine_error(std::string(kernel_name) + ": " + argument.name + " is not aligned to " + std::to_string(argument.alignment) + " bytes");
        }
    }
    const auto axis = [&](std::size_t i) { return static_cast<unsigned>(evaluate(grid_[i], kept)); };
    device_.driver().check(device_.driver().launch(function_, axis(0), axis(1), axis(2), threads_, 1, 1, shared_bytes_, device_.stream(), places.data(), nullptr),
                           "cuLaunchKernel");
}

}  // namespace decipher
