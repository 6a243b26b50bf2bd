// A host that closes its sessions as late as a host can: in an exit handler and by the end of a global, after runs.

#include <cstdlib>
#include <memory>

#include "check.hpp"
#include "sample.hpp"

namespace {

struct Close {
    void operator()(drt_session* session) const { drt_session_close(session); }
};

std::unique_ptr<drt_session, Close> global;
drt_session* handled = nullptr;

drt_session* open(const char* bundle, unsigned threads) {
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = threads;
    params.heads = "";
    drt_session* session = nullptr;
    CHECK(drt_session_open(bundle, &params, &session) == DRT_OK);
    return session;
}

}  // namespace

int main(int, char** argv) {
    const Sample sample;
    global.reset(open(argv[1], 1));
    handled = open(argv[1], 2);
    CHECK(std::atexit([] { drt_session_close(handled); }) == 0);  // after DALI was loaded, before it ran
    CHECK(drt_session_run(global.get(), &sample.volume) == DRT_OK);
    CHECK(drt_session_run(handled, &sample.volume) == DRT_OK);
}
