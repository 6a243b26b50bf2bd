#include <locale.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <locale>
#include <mutex>
#include <openvino/frontend/manager.hpp>
#include <openvino/openvino.hpp>
#include <openvino/runtime/exception.hpp>
#include <sstream>
#include <utility>

#include "blocked_signals.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "graph_cache.hpp"
#include "memory_stream.hpp"
#include "onnx_check.hpp"

namespace decipher {

namespace {

constexpr const char* no_thread = "Resource temporarily unavailable";  // EAGAIN, in the C locale, which graphs are loaded in
constexpr auto cancel_interval = std::chrono::milliseconds(5);
// Raised when a graph that was kept before must not be used again: the first two could hold numbers as a host writes them,
// the third took batches.
constexpr int kept_format = 4;

// OpenVINO writes the numbers of a graph by two locales of the host, the thread's and C++'s global one, and reads them by the
// C locale. While this lives, the thread has the C locale, and the host's other threads what they had.
class CLocale {
public:
    CLocale() : ours_(newlocale(LC_ALL_MASK, "C", locale_t{})), theirs_(uselocale(ours_)) {}
    ~CLocale() {
        uselocale(theirs_);
        freelocale(ours_);
    }
    CLocale(const CLocale&) = delete;
    CLocale& operator=(const CLocale&) = delete;

private:
    locale_t ours_, theirs_;
};

// C++'s global locale belongs to all threads: it is only looked at.
bool writes_plain_numbers() {
    const std::locale global;
    const auto& numbers = std::use_facet<std::numpunct<char>>(global);
    return numbers.decimal_point() == '.' && numbers.grouping().empty();
}

ov::element::Type element_type(Element element) {
    return element == Element::float32 ? ov::element::f32 : ov::element::i64;
}

// The name in the ONNX file: a port also has those of tensors that a Cast or Identity beside it made equal.
std::string name_of(const ov::Output<const ov::Node>& port) {
    std::string own = port.get_node()->get_friendly_name();
    if (const std::string sink = "/sink_port_0"; own.ends_with(sink)) own.resize(own.size() - sink.size());
    return port.get_names().contains(own) ? own : port.get_any_name();
}

// For a lack of memory or threads neither the file is to blame nor what was kept of it. OpenVINO gives only what was said.
void throw_what_passes(const std::string& what, const ov::Exception& error) {
    const std::string said = error.what();
    if (lacked_memory(said)) throw Error(DRT_ERROR_MEMORY, what + ": OpenVINO had not the memory that it takes");
    if (said.find(no_thread) != said.npos) throw engine_error(what + ": OpenVINO got no thread; let this process have more");
}

Error cancelled_error() { return {DRT_ERROR_CANCELLED, "cancelled while the engine ran"}; }

class OpenVinoGraph : public Graph {
public:
    // `kept` is what the graph was read from, and may still lie in.
    OpenVinoGraph(std::string file, ov::CompiledModel compiled, std::optional<KeptGraph> kept, unsigned threads)
        : file_(std::move(file)), kept_(std::move(kept)), compiled_(std::move(compiled)), request_(compiled_.create_infer_request()),
          in_caller_(threads == Engine::in_caller) {
        for (const auto& port : compiled_.inputs()) inputs_.push_back(name_of(port));
        for (const auto& port : compiled_.outputs()) outputs_.push_back(name_of(port));
    }

    const std::vector<std::string>& inputs() const override { return inputs_; }
    const std::vector<std::string>& outputs() const override { return outputs_; }

    Outputs run(const Arrays& arrays, const std::function<bool()>& cancelled) override try {
        // A request that failed within, for want of memory say, may fail for ever.
        if (std::exchange(unfinished_, true)) request_ = compiled_.create_infer_request();
        for (const auto& port : compiled_.inputs()) {
            const std::string name = name_of(port);
            const auto& [element, shape, data] = arrays.at(name);
            if (port.get_element_type() != element_type(element) || !port.get_partial_shape().compatible(ov::PartialShape(ov::Shape(shape))))
                throw engine_error(file_ + ": input " + name + " is " + element_type(element).get_type_name() + " " +
                                   ov::Shape(shape).to_string() + ", expected " +
                                   port.get_element_type().get_type_name() + " " + port.get_partial_shape().to_string());
            request_.set_tensor(port, ov::Tensor(element_type(element), ov::Shape(shape), const_cast<void*>(data)));
        }
        if (cancelled && !in_caller_) {
            bool stop = false;
            request_.start_async();
            try {
                while (!stop && !request_.wait_for(cancel_interval))
                    if ((stop = cancelled())) request_.cancel();
            } catch (...) {  // a callback's: the arrays must stay until nothing reads them
                request_.cancel();
                try {
                    request_.wait();
                } catch (const ov::Exception&) {
                }
                throw;
            }
            request_.wait();
            if (stop) throw cancelled_error();  // it ended before it could be stopped
        } else {
            request_.infer();
        }
        Outputs outputs;
        for (const auto& port : compiled_.outputs()) {
            const ov::Tensor tensor = request_.get_tensor(port);
            if (tensor.get_size() == 0 && port.get_partial_shape().is_static())
                throw Error(DRT_ERROR_MEMORY, file_ + ": OpenVINO gave an empty " + name_of(port) + "; it may lack memory");
            const ov::Shape& shape = tensor.get_shape();
            if (tensor.get_element_type() == ov::element::f32)
                outputs[name_of(port)] = {shape, {tensor.data<float>(), tensor.data<float>() + tensor.get_size()}, {}};
            else if (tensor.get_element_type() == ov::element::u8)
                outputs[name_of(port)] = {shape, {}, {tensor.data<std::uint8_t>(), tensor.data<std::uint8_t>() + tensor.get_size()}};
        }
        unfinished_ = false;
        return outputs;
    } catch (const ov::Cancelled&) {
        throw cancelled_error();
    } catch (const ov::Exception& error) {
        throw_what_passes(file_, error);
        throw engine_error(file_ + ": OpenVINO failed: " + one_line(error.what()));
    }

private:
    std::string file_;
    std::optional<KeptGraph> kept_;
    ov::CompiledModel compiled_;
    ov::InferRequest request_;
    bool in_caller_, unfinished_ = false;
    std::vector<std::string> inputs_, outputs_;
};

class OpenVino : public Engine {
public:
    explicit OpenVino(const std::string& cache_folder)
        : version_(ov::get_openvino_version().buildNumber), cache_(cache_folder) {
        try {
            const auto capabilities = core_.get_property("CPU", ov::device::capabilities);
            for (const std::string& capability : capabilities) capabilities_ += capability + " ";
        } catch (const ov::Exception& error) {
            throw_what_passes("the CPU plugin", error);
            throw engine_error("OpenVINO cannot use the CPU: " + one_line(error.what()) +
                               "; copy libopenvino_intel_cpu_plugin.so (on ARM libopenvino_arm_cpu_plugin.so) beside libopenvino");
        }
        // What kept graphs are read with: all libraries are loaded here, as the loader serves one thread at a time.
        try {
            if (cache_.enabled()) ov::frontend::FrontEndManager().load_by_framework("ir");
        } catch (const ov::Exception&) {  // then no kept graph can be read, and all are compiled
        }
    }

    std::string name() const override { return "openvino"; }
    std::string device() const override { return "cpu"; }
    bool can_keep() const override { return writes_plain_numbers(); }
    bool failed_to_keep() const override { return failed_to_keep_; }

    std::unique_ptr<Graph> load_kept(const std::string& file, const std::string& sha256, unsigned threads) override {
        if (!can_keep()) return nullptr;
        auto kept = cache_.find(key(sha256, threads));
        if (!kept) return nullptr;
        const CLocale plain_numbers;
        const BlockedSignals in_new_threads;
        try {
            const std::span<const std::byte> bytes = kept->bytes();
            const ov::Tensor compiled(ov::element::u8, ov::Shape{bytes.size()}, const_cast<std::byte*>(bytes.data()));  // only read
            return std::make_unique<OpenVinoGraph>(file, core_.import_model(compiled, "CPU", properties(threads)), std::move(kept), threads);
        } catch (const ov::Exception& error) {
            throw_what_passes(file, error);
            cache_.forget(key(sha256, threads));  // of another build with the same version: compile it anew
            return nullptr;
        }
    }

    std::unique_ptr<Graph> load(const std::string& file, const std::string& sha256, const Bytes& content, unsigned threads) override try {
        const CLocale plain_numbers;
        const BlockedSignals in_new_threads;
        ov::CompiledModel compiled = core_.compile_model(read_onnx(file, content), "CPU", properties(threads));
        if (cache_.enabled() && can_keep()) {
            std::ostringstream stream;
            compiled.export_model(stream);
            const std::lock_guard lock(keeping_);
            if (can_keep() && !cache_.keep(key(sha256, threads), std::move(stream).str())) failed_to_keep_ = true;
        }
        return std::make_unique<OpenVinoGraph>(file, std::move(compiled), std::nullopt, threads);
    } catch (const ov::Exception& error) {
        throw_what_passes(file, error);
        throw engine_error(file + ": OpenVINO " + version_ + " refuses it: " + one_line(error.what()));
    }

private:
    static ov::AnyMap properties(unsigned threads) {
        ov::AnyMap found = {
            ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
            ov::inference_num_threads(static_cast<std::int32_t>(std::max(threads, 1u))),
            // OpenVINO turns fp32 graphs into bfloat16 by itself where the CPU has it: the answers would depend on it.
            ov::hint::inference_precision(ov::element::f32),
            // Left to itself it binds its threads, and leaves the caller's where the process's first one may run.
            ov::hint::enable_cpu_pinning(false),
        };
        if (threads == in_caller) found.insert(ov::num_streams(0));
        return found;
    }

    std::string key(const std::string& sha256, unsigned threads) const {
        return std::to_string(kept_format) + " " + version_ + " " + capabilities_ + std::to_string(threads) + " " + sha256;
    }

    // Left to itself, OpenVINO tries its other formats on the file, and complains of each on standard error.
    std::shared_ptr<ov::Model> read_onnx(const std::string& file, const Bytes& content) const {
        check_self_contained(file, content);
        ov::frontend::FrontEndManager manager;
        const ov::frontend::FrontEnd::Ptr reader = manager.load_by_framework("onnx");
        if (!reader) throw engine_error("OpenVINO has no ONNX reader: copy libopenvino_onnx_frontend.so beside libopenvino");
        MemoryBuffer buffer(content);
        std::istream stream(&buffer), *pointer = &stream;
        const ov::frontend::InputModel::Ptr model = reader->load(pointer);
        if (!model) throw engine_error(file + ": OpenVINO " + version_ + " refuses it: not an ONNX graph");
        std::shared_ptr<ov::Model> graph = reader->convert(model);
        take_one_series(*graph);
        return graph;
    }

    // A session runs one series at a time. Where a graph knows that, OpenVINO plans its memory and joins more of its steps.
    static void take_one_series(ov::Model& graph) {
        std::map<ov::Output<ov::Node>, ov::PartialShape> shapes;
        for (const auto& port : graph.inputs()) {
            ov::PartialShape shape = port.get_partial_shape();
            if (shape.rank().is_static() && shape.size() > 0 && shape[0].is_dynamic()) shape[0] = 1;
            shapes[port] = shape;
        }
        graph.reshape(shapes);
    }

    std::string version_, capabilities_;
    ov::Core core_;
    GraphCache cache_;
    std::mutex keeping_;  // two files of one sum are kept under one name
    bool failed_to_keep_ = false;
};

}  // namespace

std::unique_ptr<Engine> make_openvino(const std::string& cache_folder) try {
    const BlockedSignals in_new_threads;
    return std::make_unique<OpenVino>(cache_folder);
} catch (const ov::Exception& error) {
    throw_what_passes("starting", error);
    throw engine_error("OpenVINO does not start: " + one_line(error.what()));
}

}  // namespace decipher
