// Threads that are not ours: bodies run on the team of the OpenMP runtime that torch uses, dealt out by counters.
#pragma once

#include <atomic>
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
class Phases {
public:
    struct alignas(64) Slot {
        std::atomic<int> next;
        alignas(64) std::atomic<int> done;
    };

    Phases(Slot* slots, int size) : slots_(slots), size_(size), at_(0) {}

    // Do items of the next phase as long as there are any, then wait for those of others.
    template <class Work>
    void run(int items, const Work& work) {
        if (size_ == 1) {
            for (int i = 0; i < items; i++) work(i);
            return;
        }
        Slot& slot = slots_[at_++];
        int mine = 0;
        for (;;) {
            const int i = slot.next.fetch_add(1, std::memory_order_relaxed);
            if (i >= items) break;
            work(i);
            mine++;
        }
        if (mine != 0 && slot.done.fetch_add(mine, std::memory_order_acq_rel) + mine == items) {
            slot.done.notify_all();
            return;
        }
        for (int turn = 0; turn < kSpins; turn++) {
            if (slot.done.load(std::memory_order_acquire) == items) return;
            relax();
        }
        // A processor that is given up lets the thread that is waited for move here, should its own be taken.
        for (int seen; (seen = slot.done.load(std::memory_order_acquire)) != items;) slot.done.wait(seen, std::memory_order_acquire);
    }

private:
    static constexpr int kSpins = 1000;  // some tens of microseconds
    Slot* slots_;
    int size_, at_;
};

}  // namespace sage
