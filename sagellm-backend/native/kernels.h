// What each instruction set implements: pieces of work small enough to be dealt out, large enough to hide a call.
#pragma once

#include "sagellm_native.h"

namespace sage {

constexpr int kLanes = 16;       // rows of a group, floats of a vector
constexpr int kBlock = 32;       // columns that share a scale
constexpr int kSplit = 128;      // keys attended to before a partial result is kept; the same for one query as for many
constexpr int kMaxHead = 256;    // largest head size
constexpr int kMaxQueries = 48;  // query rows of one call of attend

// Rows of activations as a matrix of some kind wants them.
struct Rows {
    int cols;
    int8_t* q;      // [T, cols]
    float* d;       // [T, cols / 32] scales
    float* ds;      // [T, cols / 32] scale times the sum of quants
    int32_t* sum;   // [T, cols / 32] sum of quants
    uint16_t* h;    // [T, cols rounded up to 2] bfloat16
};

// The queries of one call: rows of one sequence and one key/value head.
struct Queries {
    int count;
    const float* q[kMaxQueries];  // [D], already scaled
    int limit[kMaxQueries];       // keys from `first` up to here are visible
    int first[kMaxQueries];
};

struct Pages {
    const void* keys;    // [N * P, D] of one head
    const void* values;
    const int32_t* table;
    int block_size;
    int type;
    int dim;
};

// Result of a split, not yet divided by its sum.
struct Partial {
    float max;
    float sum;
    float* acc;  // [D]
};

struct Kernels {
    // Rows first..last of x (row stride ld) to the form that `kind` multiplies with.
    void (*prepare)(int kind, const float* x, long ld, int first, int last, Rows* rows);
    // One block of 32 of one row; bf16 writes 32 values.
    void (*prepare_block)(int kind, const float* x, int row, int block, Rows* rows);
    // Groups g0..g1 times rows r0..r1, with bias: out[(r - r0) * ld + (g - g0) * 16 + lane].
    void (*linear)(const SageMatrix* m, int g0, int g1, const Rows* rows, int r0, int r1, float* out, long ld);
    void (*rms_norm)(const float* x, const float* weight, int size, float eps, float* out);
    // silu(gate) * up of n (a multiple of 16) values into gate.
    void (*silu_mul)(float* gate, const float* up, int n);
    void (*attend)(const Queries* queries, const Pages* pages, int begin, int end, Partial* out);
    // Fold `from` into `into`.
    void (*merge)(Partial* into, const Partial* from, int dim);
};

const Kernels& kernels(int level);  // a level that is not built or not offered by the processor falls to the next lower
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

inline int groups_of(int rows) { return (rows + kLanes - 1) / kLanes; }
inline size_t up64(size_t n) { return (n + 63) & ~size_t(63); }

// Where things lie in a group of 16 rows: block after block, each its quants, then 16 scales, then 16 offsets, so that a
// matrix is read from its first byte to its last.
struct Layout {
    size_t quants;  // bytes of a block's quants; its scales follow
    size_t block, group;
    Layout(int kind, int cols) {
        if (kind == SAGE_BF16) {
            quants = block = 0;
            group = size_t((cols + 1) / 2) * 64;
            return;
        }
        quants = kind == SAGE_Q8_0 ? 512 : 256;
        block = quants + (kind == SAGE_Q4_1 ? 64 : 32);
        group = block * size_t(cols / kBlock);
    }
};

}  // namespace sage
