// Two sessions in four threads: each is shared by two, who take turns; the sessions need no lock between them. For TSan.
//     two_sessions BUNDLE RUNS

#include <cstdlib>
#include <mutex>
#include <thread>

#include "check.hpp"
#include "sample.hpp"

int main(int argc, char** argv) {
    CHECK(argc == 3);
    const int runs = std::atoi(argv[2]);
    const Sample sample;
    struct Shared {
        drt_session* session = nullptr;
        std::mutex turn;
        std::vector<float> first;
    } shared[2];
    {
        std::vector<std::jthread> opening;  // also opened at the same time
        for (Shared& one : shared) opening.emplace_back([&one, argv] { CHECK(drt_session_open(argv[1], nullptr, &one.session) == DRT_OK); });
    }
    {
        std::vector<std::jthread> threads;
        for (int i = 0; i < 4; ++i)
            threads.emplace_back([&, i] {
                Shared& one = shared[i % 2];
                for (int run = 0; run < runs; ++run) {
                    const std::lock_guard lock(one.turn);
                    CHECK(drt_session_run(one.session, &sample.volume) == DRT_OK);
                    if (one.first.empty()) one.first = embedding_of(one.session);
                    CHECK(cosine(embedding_of(one.session), one.first) > 1 - 1e-6);
                    drt_volume bad = sample.volume;
                    bad.slope = 0;
                    CHECK(drt_session_run(one.session, &bad) == DRT_ERROR_SERIES);
                    CHECK(std::string(drt_last_error()).find("slope") != std::string::npos);  // this thread's own
                }
            });
    }
    CHECK(cosine(shared[0].first, shared[1].first) > 1 - 1e-6);
    for (Shared& one : shared) drt_session_close(one.session);
}
