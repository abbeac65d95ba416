// Threads that are not ours: bodies run on the team of the OpenMP runtime that torch uses, dealt out by counters.
#pragma once

#include <atomic>
#include <stddef.h>
#include <stdint.h>

namespace sage {

struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
    int (*thread_num)();
    int (*num_threads)();
};
extern OpenMP openmp;

// Run body(context, rank, size) on up to `threads` threads and return when all have.
void on_team(int threads, void (*body)(void*, int, int), void* context);

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Work in phases. A phase is over when its items are done, not when every thread has come: one that the system keeps
// from running between two items holds up nobody, and finds nothing left to do when it is back.
//
// Each thread has a share of its own, items that follow one another: what lies behind them in memory is read in one
// stream, and what is asked for ahead is what comes next. Whoever is done with its share takes from the others'.
class Phases {
public:
    struct alignas(64) Counter {
        std::atomic<int> value;
    };

    // Counters that so many phases take, all zero at first.
    static size_t counters(int phases, int threads) { return size_t(phases) * size_t(threads + 1); }

    Phases(Counter* counters, int rank, int size) : at_(counters), rank_(rank), size_(size) {}

    // Do items of the next phase as long as there are any, then wait for those of others.
    template <class Work>
    void run(int items, const Work& work) {
        if (size_ == 1) {
            for (int i = 0; i < items; i++) work(i);
            return;
        }
        std::atomic<int>& done = at_->value;
        Counter* const next = at_ + 1;
        at_ += size_ + 1;
        int mine = 0;
        for (int turn = 0; turn < size_; turn++) {
            const int owner = (rank_ + turn) % size_;
            const int first = share(items, owner), count = share(items, owner + 1) - first;
            std::atomic<int>& taken = next[owner].value;
            while (taken.load(std::memory_order_relaxed) < count) {
                const int i = taken.fetch_add(1, std::memory_order_relaxed);
                if (i >= count) break;
                work(first + i);
                mine++;
            }
        }
        if (mine != 0 && done.fetch_add(mine, std::memory_order_acq_rel) + mine == items) {
            done.notify_all();
            return;
        }
        for (int turn = 0; turn < kSpins; turn++) {
            if (done.load(std::memory_order_acquire) == items) return;
            relax();
        }
        // A processor that is given up lets the thread that is waited for move here, should its own be taken.
        for (int seen; (seen = done.load(std::memory_order_acquire)) != items;) done.wait(seen, std::memory_order_acquire);
    }

private:
    static constexpr int kSpins = 1000;  // some tens of microseconds
    int share(int items, int rank) const { return int(long(items) * rank / size_); }
    Counter* at_;
    int rank_, size_;
};

}  // namespace sage
