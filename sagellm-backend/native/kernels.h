// What each instruction set implements: pieces of work small enough to be dealt out, large enough to hide a call.
#pragma once

#include "sagellm_native.h"
#include "sampling.h"

namespace sage {

constexpr int kLanes = 16;       // rows of a group, floats of a vector
constexpr int kBlock = 32;       // columns that share a scale
constexpr int kTile = 16;        // tokens whose keys lie side by side
constexpr int kSplitTiles = 8;   // tiles attended to before a result is kept; the same for one query as for many
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
    float softcap;                // scores are bounded by cap * tanh(score / cap); 0 for not
    const float* q[kMaxQueries];  // [D], already scaled
    int limit[kMaxQueries];       // keys from `first` up to here are visible
    int first[kMaxQueries];
};

// Where things lie in a tile: 16 tokens of one head.
//
// Keys are turned, so that one vector holds the same few dimensions of all 16: one in float32, two in bfloat16, four in
// 8 bits (unsigned, 128 up). Values in bfloat16 are paired, two tokens for each dimension; otherwise they lie token by
// token. In 8 bits each token has a scale of its own for its key and for its value.
struct Tile {
    int type;
    int dim, value_dim;
    size_t values, key_scales, value_scales, bytes;
    Tile(int type, int dim, int value_dim) : type(type), dim(dim), value_dim(value_dim) {
        const size_t element = type == SAGE_TYPE_F32 ? 4 : type == SAGE_TYPE_BF16 ? 2 : 1;
        values = kTile * element * size_t(dim);
        key_scales = values + kTile * element * size_t(value_dim);
        value_scales = key_scales + kTile * sizeof(float);
        bytes = type == SAGE_TYPE_I8 ? value_scales + kTile * sizeof(float) : key_scales;
    }
};

// Keys and values of one sequence and head. A block is a whole number of tiles, the last perhaps not full.
struct Pages {
    Tile tile;
    const uint8_t* base;  // the head's first tile in block 0
    long block_stride;    // bytes
    const int32_t* table;
    int block_size;
    int end;  // tokens that may be read
    int block_tiles() const { return (block_size + kTile - 1) / kTile; }
    int split_blocks() const { return block_tiles() < kSplitTiles ? kSplitTiles / block_tiles() : 1; }
    int split_of(int position) const { return position / (split_blocks() * block_size); }
    const uint8_t* at(int number, int tile_of_block) const {
        return base + long(table[number]) * block_stride + size_t(tile_of_block) * tile.bytes;
    }
};

// Results of some queries, not yet divided by their sums.
struct Sums {
    float* max;  // [count], room for a multiple of 16
    float* sum;  // likewise
    float* acc;  // [count, value_dim]
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
    // Turn the leading `rotary` values of a head by angles whose cosines, then sines, are given.
    void (*rotate)(float* head, const float* trig, int rotary, int interleaved);
    void (*add)(float* to, const float* from, int n);               // n a multiple of 16
    void (*scaled)(const float* from, float by, int n, float* to);  // likewise
    // Attend to splits first..last. A tile is read from its first byte to its last, so the processor fetches ahead itself.
    void (*attend)(const Queries* queries, const Pages* pages, int first, int last, Sums* out);
    // Fold `from` into `into`; splits folded in order give what attend over all of them does.
    void (*fold)(int count, int dim, Sums* into, const Sums* from);
    // Put one token's key or value into its tile.
    void (*keep_key)(const Tile* layout, uint8_t* tile, int lane, const float* key);
    void (*keep_value)(const Tile* layout, uint8_t* tile, int lane, const float* value);
    SamplingKernels sampling;
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
    {8, 0, 0, 1, 1, false},   // F8: floats under a float
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
        // Of F8 16 float scales take that place, and quants lie pair by pair: two columns of each row.
        small = f.offsets || kind == SAGE_F8 ? 64 : 32;
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
