// The C interface of the CPU kernels: plain structs and pointers, no torch, no Python.
//
// Letters: T rows (tokens), O output features, E input features, S sequences, P tokens of a block, D head size.
#ifndef SAGELLM_NATIVE_H
#define SAGELLM_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define SAGE_API __attribute__((visibility("default")))
#define SAGE_ABI 5

// How rows are kept: as GGUF's blocks of that name, or as numbers. They are interleaved in groups of 16, so that one vector
// holds the same columns of 16 rows.
enum SageKind {
    SAGE_BF16 = 0,
    SAGE_Q4_0 = 1,
    SAGE_Q4_1 = 2,
    SAGE_Q5_0 = 3,
    SAGE_Q5_1 = 4,
    SAGE_Q8_0 = 5,
    SAGE_Q2_K = 6,
    SAGE_Q3_K = 7,
    SAGE_Q4_K = 8,
    SAGE_Q5_K = 9,
    SAGE_Q6_K = 10,
    SAGE_F8 = 11,  // 8-bit floats (E4M3) in blocks of 32, each a float scale and the floats
};

enum SageType { SAGE_TYPE_F32 = 0, SAGE_TYPE_BF16 = 1, SAGE_TYPE_I8 = 2 };

// Instruction sets, each a superset of the one before.
enum SageLevel { SAGE_PORTABLE = 0, SAGE_AVX2 = 1, SAGE_AVX512 = 2 };

// Rows of one kind.
typedef struct {
    int32_t kind;         // SageKind
    int32_t rows;         // a multiple of 16, except in a matrix's last
    const uint8_t* data;  // sage_packed_bytes, aligned to 64
} SageSegment;

typedef struct {
    int32_t kind;          // how activations meet it: SAGE_BF16 where all segments are BF16 or F8; else any of theirs, none of
                           // which are
    int32_t rows;          // O, of all segments
    int32_t cols;          // E
    int32_t segments;
    const SageSegment* segment;
    const float* bias;     // [O] or null
} SageMatrix;

typedef struct {
    const SageMatrix* qkv;      // [(Hq + 2 Hkv) D, E]
    const SageMatrix* out;      // [E, Hq D]
    const SageMatrix* gate_up;  // [2 I, E], gate first
    const SageMatrix* down;     // [E, I]
    const float* input_norm;    // [E]
    const float* post_norm;     // [E]
    const float* q_norm;        // [D] or null
    const float* k_norm;        // [D] or null
    float eps;
    float scale;
    int32_t window;             // tokens back that are visible, 0 for all
    int32_t group;              // which block tables are its own
} SageLayer;

typedef struct {
    int32_t layers;
    int32_t hidden;        // E
    int32_t inner;         // I
    int32_t heads;         // Hq
    int32_t kv_heads;      // Hkv
    int32_t head_dim;      // D
    int32_t rotary_dim;    // 0 for no rotation
    int32_t interleaved;   // pairs are (0, 1), (2, 3), ...
    float attention_factor;
    float eps;             // of the last norm
    const float* inv_freq; // [rotary_dim / 2]
    const float* norm;     // [E]
    const SageMatrix* embedding;
    const SageLayer* layer;
} SageDecoder;

typedef struct {
    int32_t tokens;                 // T
    int32_t sequences;              // S
    int32_t block_size;             // P
    int32_t kv_type;                // SageType
    const int32_t* ids;             // [T]
    const int32_t* positions;       // [T]
    const int32_t* query_lens;      // [S]
    const int32_t* context_lens;    // [S], this step's tokens included
    const int32_t* const* tables;   // of each group, [S, table_stride]
    int32_t table_stride;
    int32_t reads;                  // R
    uint8_t* pool;                  // N blocks: of each layer, of each head, its tiles
    int64_t block_stride;           // bytes of a block
    const int64_t* layer_offset;    // [layers], bytes into a block
    const int32_t* read;            // [R] tokens in ascending order whose hidden states are wanted, or null for all
} SageStep;

SAGE_API int sage_abi(void);
// The best level this processor offers.
SAGE_API int sage_best_level(void);
// Entry points of the OpenMP runtime whose threads are to be shared; without them everything runs on the caller.
SAGE_API void sage_use_openmp(void* gomp_parallel, void* omp_get_thread_num, void* omp_get_num_threads);

SAGE_API size_t sage_packed_bytes(int kind, int rows, int cols);
// Lay `count` rows out as rows `first`.. of a segment. They are GGUF's blocks, or for BF16 numbers of a SageType.
SAGE_API void sage_pack(int kind, int cols, uint8_t* data, int type, const void* rows, int first, int count);

// out = x @ matrix.T + bias: [T, E] to [T, O].
SAGE_API int sage_linear(int level, int threads, const SageMatrix* matrix, int type, const void* x, int tokens,
                         int out_type, void* out);
// Rows of a table: [T] to [T, E] float.
SAGE_API void sage_embedding(const SageMatrix* table, const int32_t* ids, int tokens, float* out);

// Bytes that 16 tokens take in a pool, keys and values of one head.
SAGE_API size_t sage_tile_bytes(int type, int dim, int value_dim);

// Attention of one layer over a step: keep keys [T, Hkv, D] and values [T, Hkv, Dv], then attend with q [T, Hq, D] into
// out [T, Hq, Dv]. All are of one type, float32 or bfloat16; the step's ids are not read. -1 when memory is short.
typedef struct {
    int32_t heads, kv_heads, head_dim, value_dim;
    int32_t window, group, layer, type;
    float scale, softcap;
} SageAttention;
SAGE_API int sage_attention(int level, int threads, const SageAttention* shape, const SageStep* step, const void* q,
                            const void* k, const void* v, void* out);

// A whole step: ids to hidden states after the last norm, [T, E] float, or [R, E] of the tokens that are read. -1 when memory is short, -2 for an unknown id.
SAGE_API int sage_decoder_run(int level, int threads, const SageDecoder* decoder, const SageStep* step, float* out);

// What is asked of one row of V scores. Scores are of a SageType, float32 or bfloat16.
typedef struct {
    const void* scores;  // drawn from
    const void* raw;     // reported on: the model's own
    double uniform;      // in [0, 1): decides the draw, by inverse cumulative distribution over ids in ascending order
    double top_p;        // 1 keeps all
    float temperature;   // 0 for the largest
    float min_p;         // its logarithm, -inf keeps all
    int32_t top_k;       // 0 keeps all
    int32_t token;       // given, or -1 for one to be drawn
    int32_t top;         // how many of the likeliest are reported, -1 for no report at all
    int32_t type, raw_type;
    int32_t unused;
} SageDraw;

typedef struct {
    int32_t token;   // -1 where there is none, for scores are no numbers
    int32_t rank;    // of the token, 1 for the largest
    int32_t top;     // how many are reported
    float logprob;   // of the token
} SageDrawn;

// Draw a token from each row, then report on it. Of reports, row r's likeliest are at r * width of `top_ids` and
// `top_logprobs`, likeliest first, of equals the lower id. -1 when memory is short.
SAGE_API int sage_sample(int level, int threads, const SageDraw* draws, int rows, int vocabulary, SageDrawn* drawn,
                         int width, int32_t* top_ids, float* top_logprobs);
// Of each row [V] the lowest id of the largest score, -1 where one is no number. -1 when memory is short.
SAGE_API int sage_greedy(int level, int threads, int type, const void* scores, int rows, int vocabulary, int32_t* tokens);

#if defined(__cplusplus)
}
#endif
#endif
