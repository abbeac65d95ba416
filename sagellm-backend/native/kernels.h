// What each instruction set implements: pieces of work small enough to be dealt out, large enough to hide a call.
#pragma once

#include "sagellm_native.h"

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
    int32_t* sum;   // [T, cols / 32] sum of quants
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
    // Rows first..last of x (row stride ld) to the form that `kind` multiplies with.
    void (*prepare)(int kind, const float* x, long ld, int first, int last, Rows* rows);
    // One block of 32 of one row; bf16 writes 32 values.
    void (*prepare_block)(int kind, const float* x, int row, int block, Rows* rows);
    // Groups g0..g1 times rows r0..r1, with bias: out[(r - r0) * ld + (g - g0) * 16 + lane].
    void (*linear)(const SageMatrix* m, int g0, int g1, const Rows* rows, int r0, int r1, float* out, long ld);
    void (*rms_norm)(const float* x, const float* weight, int size, float eps, float* out);
    // silu(gate) * up of n (a multiple of 16) values into gate.
    void (*silu_mul)(float* gate, const float* up, int n);
    // Attend to splits first..last. Those of `next`, if any, are asked for in time.
    void (*attend)(const Queries* queries, const Pages* pages, int first, int last, const Pages* next, int next_first, Sums* out);
    // Fold `from` into `into`; splits folded in order give what attend over all of them does.
    void (*fold)(int count, int dim, Sums* into, const Sums* from);
    // Put one token's key or value into its tile.
    void (*keep_key)(const Tile* layout, uint8_t* tile, int lane, const float* key);
    void (*keep_value)(const Tile* layout, uint8_t* tile, int lane, const float* value);
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
