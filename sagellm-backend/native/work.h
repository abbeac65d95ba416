// How work is cut, and the memory of one call.
#pragma once

#include <stdlib.h>

#include "kernels.h"

namespace sage {

constexpr int kTileRows = 96;     // rows of a piece of work: the activations stay in the second-level cache
constexpr int kPrivateRows = 8;   // up to so many rows each thread prepares for itself: cheaper than to wait for others
constexpr int kPrepareRows = 16;  // rows of a piece of preparation

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }

// Memory of one call, cut from one allocation.
class Arena {
public:
    template <class T>
    T* take(size_t count) {
        const size_t at = used_;
        used_ += up64(count * sizeof(T));
        return reinterpret_cast<T*>(base_ + at);
    }
    // The layout is walked twice: first to size, then to cut.
    bool allocate() {
        base_ = static_cast<char*>(aligned_alloc(64, up64(used_) + 64));
        used_ = 0;
        return base_ != nullptr;
    }
    ~Arena() { free(base_); }

private:
    char* base_ = nullptr;
    size_t used_ = 0;
};

inline Rows take_rows(Arena& arena, int kind, int tokens, int cols) {
    Rows rows{};
    rows.cols = cols;
    if (kind == SAGE_BF16) {
        rows.h = arena.take<uint16_t>(size_t(tokens) * ((cols + 1) & ~1));
        return rows;
    }
    const size_t blocks = size_t(tokens) * (cols / kBlock);
    rows.q = arena.take<int8_t>(blocks * kBlock);
    rows.d = arena.take<float>(blocks);
    rows.ds = arena.take<float>(blocks);
    rows.sum = arena.take<int32_t>(2 * blocks);
    return rows;
}

}  // namespace sage
