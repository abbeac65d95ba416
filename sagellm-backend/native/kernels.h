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
    int32_t* sum;   // [T, cols / 16] sum of quants
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
    // Rows first..last of x (row stride ld) to the form that `kind` multiplies with: one for BF16, one for all others.
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

// How a kind of blocks holds 32 columns of 16 rows. An element is scale * (quant - zero) + offset. Quants lie in one plane of
// bits or, where their number is no power of two, in two. A block of GGUF's K formats spans 8 of 32 columns: there
// scale and offset are one of the span's float16 numbers times a small integer.
struct Format {
    int low, high;  // bits of a quant in each plane
    int zero;
    int span;       // blocks of 32 columns under one float16 scale
    int parts;      // of a block, with an integer each: 1 or 2
    bool offsets;
    constexpr int bits() const { return low + high; }
};

// By SageKind.
constexpr Format kFormats[] = {
    {16, 0, 0, 1, 1, false},  // BF16: no blocks
    {4, 0, 8, 1, 1, false},   // Q4_0
    {4, 0, 0, 1, 1, true},    // Q4_1
    {4, 1, 16, 1, 1, false},  // Q5_0
    {4, 1, 0, 1, 1, true},    // Q5_1
    {8, 0, 128, 1, 1, false}, // Q8_0
    {2, 0, 0, 8, 2, true},    // Q2_K
    {2, 1, 4, 8, 2, false},   // Q3_K
    {4, 0, 0, 8, 1, true},    // Q4_K
    {4, 1, 0, 8, 1, true},    // Q5_K
    {4, 2, 32, 8, 2, false},  // Q6_K
};

// Where things lie in a group of 16 rows. A matrix is read from its first byte to its last: span after span, each
//   16 float16 scales, 16 float16 offsets where there are any,
//   of each block the small integers where there are any: 2 x 16 bytes, see Small,
//   of each block the quants: vectors of 64 bytes, 4 columns of each row. The low plane's vector v holds columns 4 v of its
//   lowest bits, then those of 4 (v + n) above them (n vectors in all) if it has 4 bits, of 4 v + 4 if it has 2; so does
//   the high plane's, which follows; a plane of one bit holds columns 4 j in bit j.
struct Layout {
    size_t small;   // from a span's first byte to its integers
    size_t quants;  // likewise to its quants
    size_t block;   // bytes of a block's quants
    size_t span, group;
    constexpr Layout(int kind, int cols) : small(0), quants(0), block(0), span(0), group(size_t((cols + 1) / 2) * 64) {
        if (kind == SAGE_BF16) return;
        const Format& f = kFormats[kind];
        small = f.offsets ? 64 : 32;
        quants = small + (f.span > 1 ? size_t(f.span) * kSmall : 0);
        block = size_t(f.bits()) * 64;
        span = quants + size_t(f.span) * block;
        group = span * size_t(cols / (f.span * kBlock));
    }
    // Of a block, bytes of small integers: scales of both parts; or scale and offset of the only part; or, with two parts
    // and offsets, of each part the scale in a byte's low half and the offset in its high half.
    static constexpr size_t kSmall = 32;
};

}  // namespace sage
