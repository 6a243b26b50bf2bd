#include "backend.hpp"
#include "buffer.hpp"
#include "elapsed.hpp"
#include "parallel.hpp"
#include "series.hpp"

namespace decipher {

namespace {

class InProcessArrival : public Arrival {
public:
    InProcessArrival(Session& session, const SeriesForm& form) : series_(session, form) {}

    void push(const SliceView& slice, const Vector& position_lps_mm) override { series_.push(slice, position_lps_mm); }
    std::vector<std::int64_t> missing() const override { return series_.missing(); }
    Result finish() override { return series_.finish(); }

private:
    Series series_;
};

class InProcess : public Backend {
public:
    explicit InProcess(const SessionOptions& options) : session_(options) {}

    const Description& description() const override { return session_.description(); }

    Result run(const SeriesForm& form, const VolumeView& volume) override {
        const std::size_t slice_bytes = form.slice_voxels() * bytes_of(form.stored);
        bool contiguous = volume.strides[0] == static_cast<std::int64_t>(slice_bytes) || form.shape[0] == 1;
        contiguous = contiguous && usable_in_place(form, volume.slice(0));
        if (contiguous) return session_.run(form, volume.voxels);
        const auto start = std::chrono::steady_clock::now();
        Bytes voxels(form.voxels() * bytes_of(form.stored));
        parallel_for(static_cast<std::size_t>(form.shape[0]), description().threads, [&](std::size_t i) {
            convert_slice(form, volume.slice(static_cast<std::int64_t>(i)), voxels.data() + i * slice_bytes);
        });
        const double converted_ms = milliseconds_since(start);
        Result result = session_.run(form, voxels.data());
        result.times.preprocess_ms += converted_ms;
        result.times.total_ms += converted_ms;
        return result;
    }

    std::unique_ptr<Arrival> begin(const SeriesForm& form) override {
        return std::make_unique<InProcessArrival>(session_, form);
    }

    void warm_up() override { session_.warm_up(); }

    Gpu& gpu() const override { return session_.gpu(); }

private:
    Session session_;
};

}  // namespace

std::unique_ptr<Backend> make_in_process(const SessionOptions& options) { return std::make_unique<InProcess>(options); }

}  // namespace decipher
