// What every engine is: a graph of the bundle, loaded once, run many times on named arrays.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace decipher {

enum class Element { float32, int64 };

// An array of the caller, read in place.
struct Array {
    Element element;
    std::vector<std::size_t> shape;
    const void* data;
};

using Arrays = std::map<std::string, Array>;
// What a graph gave by one name: floats, or the bytes of a label map.
struct Output {
    std::vector<std::size_t> shape;
    std::vector<float> values;
    std::vector<std::uint8_t> labels;
};

using Outputs = std::map<std::string, Output>;  // those of floats or bytes; a graph may give others, which nobody asks for

class Graph {
public:
    Graph() = default;
    virtual ~Graph() = default;
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    virtual const std::vector<std::string>& inputs() const = 0;
    virtual const std::vector<std::string>& outputs() const = 0;

    // Run on the arrays that are the graph's inputs; others in `arrays` are left alone. `cancelled` is asked now and then,
    // of a graph that has threads of its own; once it says so, the run ends with DRT_ERROR_CANCELLED.
    virtual Outputs run(const Arrays& arrays, const std::function<bool()>& cancelled) = 0;
};

class Engine {
public:
    Engine() = default;
    virtual ~Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    virtual std::string name() const = 0;
    virtual std::string device() const = 0;
    // Whether the host's locale lets compiled graphs be kept and read back as they are; where it does not, none is.
    virtual bool can_keep() const = 0;
    // Whether a compiled graph was to be kept and was not: no folder, no room.
    virtual bool failed_to_keep() const = 0;

    // For `threads`: a graph that computes in the thread that calls it. It keeps none of its own, and cannot be cancelled.
    static constexpr unsigned in_caller = 0;

    // This and the next: any number of threads at a time.
    // A graph that an earlier session compiled from the file of this sum (64 hexadecimal digits); nullptr if there is none.
    virtual std::unique_ptr<Graph> load_kept(const std::string& file, const std::string& sha256, unsigned threads) = 0;
    // Compile a file, and keep the result. Throws an engine error where the engine refuses it.
    virtual std::unique_ptr<Graph> load(const std::string& file, const std::string& sha256, const Bytes& content, unsigned threads) = 0;
};

// `cache_folder`: where compiled graphs are kept; empty for nowhere.
std::unique_ptr<Engine> make_openvino(const std::string& cache_folder);

}  // namespace decipher
