#include "team.h"

#include "sagellm_native.h"

namespace sage {

OpenMP openmp = {nullptr, nullptr, nullptr};

namespace {
struct Job {
    void (*body)(void*, int, int);
    void* context;
};
void enter(void* job) {
    const Job* j = static_cast<Job*>(job);
    j->body(j->context, openmp.thread_num(), openmp.num_threads());
}
}  // namespace

void on_team(int threads, void (*body)(void*, int, int), void* context) {
    if (threads <= 1 || openmp.parallel == nullptr) return body(context, 0, 1);
    Job job = {body, context};
    openmp.parallel(enter, &job, unsigned(threads), 0);
}

}  // namespace sage

using namespace sage;

int sage_abi(void) { return SAGE_ABI; }

void sage_use_openmp(void* parallel, void* thread_num, void* num_threads) {
    openmp.parallel = reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(parallel);
    openmp.thread_num = reinterpret_cast<int (*)()>(thread_num);
    openmp.num_threads = reinterpret_cast<int (*)()>(num_threads);
}
