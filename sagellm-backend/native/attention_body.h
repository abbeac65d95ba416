// Attention of a few queries over tiles of keys and values, by one instruction set's primitives.
//
// Softmax by splits: each is computed from its own largest score and folded into what came before (Milakov and
// Gimelshein, "Online normalizer calculation for softmax", 2018; Dao, "FlashAttention", 2022).
#pragma once

#include <float.h>
#include <math.h>

#include "kernels.h"

namespace sage {
namespace {

constexpr float kNone = -INFINITY;
constexpr int kSplitKeys = kSplitTiles * kTile;
constexpr int kQueryWords = kMaxHead;  // 32-bit words of a query in its widest type

// -- tiles ------------------------------------------------------------------------------------------------------------

// Quants of `size` values and their scale.
SAGE_INLINE float quantize(const float* x, int size, int8_t* q) {
    F16 most{};
    for (int i = 0; i < size; i += kLanes) most = max16(most, abs16(load(x + i)));
    const float top = largest(most), inverse = top > 0.0f ? 127.0f / top : 0.0f;
    for (int i = 0; i < size; i += kLanes) store_quants(q + i, load(x + i) * inverse);
    return top / 127.0f;
}

void keep_key(const Tile* layout, uint8_t* tile, int lane, const float* key) {
    const int dim = layout->dim;
    if (layout->type == SAGE_TYPE_F32) {
        for (int d = 0; d < dim; d++) reinterpret_cast<float*>(tile)[d * kTile + lane] = key[d];
    } else if (layout->type == SAGE_TYPE_BF16) {
        alignas(64) uint16_t h[kMaxHead];
        for (int d = 0; d < dim; d += kLanes) store_bf16(h + d, load(key + d));
        for (int d = 0; d < dim; d += 2) memcpy(tile + (d / 2 * kTile + lane) * 4, h + d, 4);
    } else {
        alignas(64) int8_t q[kMaxHead];
        const float scale = quantize(key, dim, q);
        for (int d = 0; d < dim; d++) q[d] = int8_t(q[d] ^ 0x80);
        for (int d = 0; d < dim; d += 4) memcpy(tile + (d / 4 * kTile + lane) * 4, q + d, 4);
        memcpy(tile + layout->key_scales + lane * 4, &scale, 4);
    }
}

void keep_value(const Tile* layout, uint8_t* tile, int lane, const float* value) {
    const int dim = layout->value_dim;
    uint8_t* values = tile + layout->values;
    if (layout->type == SAGE_TYPE_F32) {
        memcpy(values + size_t(lane) * dim * 4, value, size_t(dim) * 4);
    } else if (layout->type == SAGE_TYPE_BF16) {
        alignas(64) uint16_t h[kMaxHead];
        for (int d = 0; d < dim; d += kLanes) store_bf16(h + d, load(value + d));
        uint16_t* pairs = reinterpret_cast<uint16_t*>(values) + size_t(lane / 2) * dim * 2 + lane % 2;
        for (int d = 0; d < dim; d++) pairs[d * 2] = h[d];
    } else {
        const float scale = quantize(value, dim, reinterpret_cast<int8_t*>(values) + size_t(lane) * dim);
        memcpy(tile + layout->value_scales + lane * 4, &scale, 4);
    }
}

// A split's tiles, found once.
struct Split {
    int tiles;
    bool full;                     // every tile has all its tokens
    const uint8_t* at[kSplitTiles];
    int first[kSplitTiles];        // position of a tile's first token
    int count[kSplitTiles];        // its tokens that may be read
};

SAGE_INLINE Split find_split(const Pages* pages, int number) {
    Split split;
    split.tiles = 0;
    split.full = true;
    const int blocks = pages->split_blocks(), of_block = pages->block_tiles();
    for (int b = number * blocks; b < (number + 1) * blocks; b++) {
        for (int i = 0; i < of_block; i++) {
            const int first = b * pages->block_size + i * kTile;
            if (first >= pages->end) return split;
            const int room = pages->block_size - i * kTile, left = pages->end - first;
            const int count = room < kTile ? room : kTile;
            split.at[split.tiles] = pages->at(b, i);
            split.first[split.tiles] = first;
            split.count[split.tiles] = count < left ? count : left;
            split.full = split.full && split.count[split.tiles] == kTile;
            split.tiles++;
        }
    }
    return split;
}

// -- scores -----------------------------------------------------------------------------------------------------------

// Queries in the form that meets keys of a type.
struct Packed {
    alignas(64) uint32_t words[kMaxQueries][kQueryWords];
    float scale[kMaxQueries];
    int32_t start[kMaxQueries];  // what keys' being 128 up adds, taken off
};

template <int Type>
void pack_queries(const Queries* queries, int dim, Packed* out) {
    for (int r = 0; r < queries->count; r++) {
        if (Type == SAGE_TYPE_F32) {
            memcpy(out->words[r], queries->q[r], size_t(dim) * 4);
        } else if (Type == SAGE_TYPE_BF16) {
            uint16_t* h = reinterpret_cast<uint16_t*>(out->words[r]);
            for (int d = 0; d < dim; d += kLanes) store_bf16(h + d, load(queries->q[r] + d));
        } else {
            int8_t* q = reinterpret_cast<int8_t*>(out->words[r]);
            out->scale[r] = quantize(queries->q[r], dim, q);
            int32_t sum = 0;
            for (int d = 0; d < dim; d++) sum += q[d];
            out->start[r] = -128 * sum;
        }
    }
}

// Scores of R queries over N tiles.
template <int Type, int R, int N>
SAGE_INLINE void score(const Packed* q, int row, const Tile& tile, const uint8_t* const* at, F16 (&out)[R][N]) {
    const int words = Type == SAGE_TYPE_F32 ? tile.dim : Type == SAGE_TYPE_BF16 ? tile.dim / 2 : tile.dim / 4;
    if (Type == SAGE_TYPE_I8) {
        I16 acc[R][N];
        for (int r = 0; r < R; r++) {
            for (int n = 0; n < N; n++) acc[r][n] = I16{} + q->start[row + r];
        }
        for (int w = 0; w < words; w++) {
            for (int n = 0; n < N; n++) {
                const Bytes keys = load_bytes(at[n] + w * 64);
                for (int r = 0; r < R; r++) acc[r][n] = dot_full(acc[r][n], keys, int32_t(q->words[row + r][w]));
            }
        }
        for (int n = 0; n < N; n++) {
            const F16 scales = load(reinterpret_cast<const float*>(at[n] + tile.key_scales));
            for (int r = 0; r < R; r++) out[r][n] = __builtin_convertvector(acc[r][n], F16) * (scales * q->scale[row + r]);
        }
        return;
    }
    for (int r = 0; r < R; r++) {
        for (int n = 0; n < N; n++) out[r][n] = F16{};
    }
    for (int w = 0; w < words; w++) {
        for (int n = 0; n < N; n++) {
            const U16 keys = *reinterpret_cast<const U16u*>(at[n] + w * 64);
            for (int r = 0; r < R; r++) {
                if (Type == SAGE_TYPE_BF16) {
                    out[r][n] = dot_bf16(out[r][n], keys, q->words[row + r][w]);
                } else {
                    float x;
                    memcpy(&x, &q->words[row + r][w], 4);
                    out[r][n] += (F16)keys * x;
                }
            }
        }
    }
}

SAGE_INLINE F16 tanh16(F16 x) {
    const F16 e = exp16(min16(x + x, splat(80.0f)));
    return 1.0f - 2.0f / (e + 1.0f);
}

// What a split is worth to each query before values are met: weights, largest scores, sums.
struct Scores {
    // Scores, then weights; those that meet values in bfloat16 are packed from the front.
    alignas(64) float weight[kMaxQueries][kSplitKeys];
    alignas(64) float max[kMaxQueries];
    alignas(64) float sum[kMaxQueries];
};

// Whether each of R queries sees every token of a split, and as it is.
template <int R>
SAGE_INLINE bool all_seen(const Queries* queries, int row, const Split& split) {
    bool all = split.full && queries->softcap == 0.0f;
    for (int r = row; r < row + R; r++) {
        all = all && queries->first[r] <= split.first[0] && queries->limit[r] >= split.first[split.tiles - 1] + kTile;
    }
    return all;
}

template <int R, int N>
SAGE_INLINE void keep_scores(const Queries* queries, int row, const Split& split, int n0, const F16 (&s)[R][N], F16 (&most)[R],
                             Scores* out) {
    const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (all_seen<R>(queries, row, split)) {
        for (int n = 0; n < N; n++) {
            for (int r = 0; r < R; r++) {
                store(&out->weight[row + r][(n0 + n) * kTile], s[r][n]);
                most[r] = max16(most[r], s[r][n]);
            }
        }
        return;
    }
    for (int n = 0; n < N; n++) {
        const int first = split.first[n0 + n], count = split.count[n0 + n];
        for (int r = 0; r < R; r++) {
            F16 value = s[r][n];
            if (queries->softcap != 0.0f) value = queries->softcap * tanh16(value / queries->softcap);
            const int from = queries->first[row + r] - first, room = queries->limit[row + r] - first;
            const int to = room < count ? room : count;
            if (from > 0 || to < kTile) value = (lane >= from) & (lane < to) ? value : splat(kNone);
            store(&out->weight[row + r][(n0 + n) * kTile], value);
            most[r] = max16(most[r], value);
        }
    }
}

template <int Type, int R>
SAGE_INLINE void score_rows(const Queries* queries, const Packed* q, int row, const Tile& tile, const Split& split, Scores* out) {
    F16 most[R];
    for (int r = 0; r < R; r++) most[r] = splat(kNone);
    int n = 0;
    for (; n + kTilesAtOnce <= split.tiles; n += kTilesAtOnce) {
        F16 s[R][kTilesAtOnce];
        score<Type, R, kTilesAtOnce>(q, row, tile, split.at + n, s);
        keep_scores<R, kTilesAtOnce>(queries, row, split, n, s, most, out);
    }
    for (; n < split.tiles; n++) {
        F16 s[R][1];
        score<Type, R, 1>(q, row, tile, split.at + n, s);
        keep_scores<R, 1>(queries, row, split, n, s, most, out);
    }
    for (int r = 0; r < R; r++) {
        const float top = largest(most[r]);
        F16 total{};
        for (int t = 0; t < split.tiles * kTile; t += kLanes) {
            // A query that sees nothing of this split has only -inf: its weights are 0, not exp(-inf + inf).
            const F16 e = top == kNone ? F16{} : exp16(load(&out->weight[row + r][t]) - top);
            if (Type == SAGE_TYPE_BF16) {
                store_bf16(reinterpret_cast<uint16_t*>(out->weight[row + r]) + t, e);
            } else {
                store(&out->weight[row + r][t], e);
            }
            total += e;
        }
        out->max[row + r] = top;
        out->sum[row + r] = add_up(total);
    }
}

// -- folding ----------------------------------------------------------------------------------------------------------

// Factors of what was there and of what comes, and the new sums, of `count` queries.
SAGE_INLINE void fold_sums(int count, Sums* into, const float* max, const float* sum, float* keep, float* add) {
    for (int r = 0; r < count; r += kLanes) {
        const F16 had = load(into->max + r), comes = load(max + r), top = max16(had, comes);
        // Where neither saw anything, -inf less -inf would be no number.
        const F16 base = top == kNone ? F16{} : top;
        const F16 kept = exp16(had - base), added = exp16(comes - base);
        store(into->max + r, top);
        store(into->sum + r, load(into->sum + r) * kept + load(sum + r) * added);
        store(keep + r, kept);
        store(add + r, added);
    }
}

void fold(int count, int dim, Sums* into, const Sums* from) {
    alignas(64) float keep[kMaxQueries], add[kMaxQueries];
    fold_sums(count, into, from->max, from->sum, keep, add);
    for (int r = 0; r < count; r++) {
        for (int d = 0; d < dim; d += kLanes) {
            float* acc = into->acc + r * dim + d;
            store(acc, load(acc) * keep[r] + load(from->acc + r * dim + d) * add[r]);
        }
    }
}

// -- values -----------------------------------------------------------------------------------------------------------

// Weights in the form that meets values in 8 bits, over all tiles of a split: times their scales.
SAGE_INLINE void scale_weights(int count, const Tile& tile, const Split& split, Scores* scores) {
    const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int n = 0; n < split.tiles; n++) {
        // What was never written may be anything, even no number.
        const F16 scales = lane < split.count[n] ? load(reinterpret_cast<const float*>(split.at[n] + tile.value_scales)) : F16{};
        for (int r = 0; r < count; r++) {
            float* weight = &scores->weight[r][n * kTile];
            store(weight, load(weight) * scales);
        }
    }
}

// Values of D vectors of 16 dimensions from `d`, weighted, and folded into what was there. Not inlined: the loop needs
// the registers that constants of others would hold.
template <int Type, int R, int D>
__attribute__((noinline)) void weigh(const Scores* scores, int row, const Tile& tile, const Split& split, int d, const float* keep,
                       const float* add, float* acc) {
    F16 sum[R][D];
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < D; i++) sum[r][i] = F16{};
    }
    const int dim = tile.value_dim;
    for (int n = 0; n < split.tiles; n++) {
        const uint8_t* values = split.at[n] + tile.values;
        if (Type == SAGE_TYPE_BF16) {
            const int pairs = split.count[n] / 2;
            const auto pair = [&](int k, uint32_t mask) {
                uint32_t w[R];
                for (int r = 0; r < R; r++) {
                    memcpy(&w[r], reinterpret_cast<const uint16_t*>(scores->weight[row + r]) + n * kTile + k * 2, 4);
                }
                for (int i = 0; i < D; i++) {
                    const U16 v = *reinterpret_cast<const U16u*>(values + (size_t(k) * dim + d + i * kLanes) * 4) & mask;
                    for (int r = 0; r < R; r++) sum[r][i] = dot_bf16(sum[r][i], v, w[r]);
                }
            };
            for (int k = 0; k < pairs; k++) pair(k, 0xffffffffu);
            // The other half was never written.
            if (split.count[n] % 2 != 0) pair(pairs, 0x0000ffffu);
        } else {
            for (int k = 0; k < split.count[n]; k++) {
                for (int i = 0; i < D; i++) {
                    F16 v;
                    if (Type == SAGE_TYPE_F32) {
                        v = load(reinterpret_cast<const float*>(values) + size_t(k) * dim + d + i * kLanes);
                    } else {
                        v = __builtin_convertvector(load_small(values + size_t(k) * dim + d + i * kLanes), F16);
                    }
                    for (int r = 0; r < R; r++) sum[r][i] += v * scores->weight[row + r][n * kTile + k];
                }
            }
        }
    }
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < D; i++) {
            float* at = acc + long(row + r) * dim + d + i * kLanes;
            store(at, load(at) * keep[row + r] + sum[r][i] * add[row + r]);
        }
    }
}

template <int Type, int R>
SAGE_INLINE void weigh_rows(const Scores* scores, int row, const Tile& tile, const Split& split, const float* keep,
                            const float* add, float* acc) {
    int d = 0;
    for (; d + kDimsAtOnce * kLanes <= tile.value_dim; d += kDimsAtOnce * kLanes) {
        weigh<Type, R, kDimsAtOnce>(scores, row, tile, split, d, keep, add, acc);
    }
    for (; d < tile.value_dim; d += kLanes) weigh<Type, R, 1>(scores, row, tile, split, d, keep, add, acc);
}

// -- together ---------------------------------------------------------------------------------------------------------

// Rows four by four, then what is left.
template <class Work>
SAGE_INLINE void by_rows(int count, const Work& work) {
    int r = 0;
    for (; r + 4 <= count; r += 4) work.template operator()<4>(r);
    switch (count - r) {
        case 3: work.template operator()<3>(r); break;
        case 2: work.template operator()<2>(r); break;
        case 1: work.template operator()<1>(r); break;
        default: break;
    }
}

template <int Type>
void attend_of(const Queries* queries, const Pages* pages, int first, int last, Sums* out) {
    const int count = queries->count;
    const Tile& tile = pages->tile;
    Packed packed;
    Scores scores;
    alignas(64) float keep[kMaxQueries], add[kMaxQueries];
    pack_queries<Type>(queries, tile.dim, &packed);
    for (int r = 0; r < count; r += kLanes) {
        store(out->max + r, splat(kNone));
        store(out->sum + r, F16{});
        store(scores.max + r, splat(kNone));
        store(scores.sum + r, F16{});
    }
    memset(out->acc, 0, size_t(count) * tile.value_dim * sizeof(float));
    for (int number = first; number < last; number++) {
        const Split split = find_split(pages, number);
        by_rows(count, [&]<int R>(int row) { score_rows<Type, R>(queries, &packed, row, tile, split, &scores); });
        fold_sums(count, out, scores.max, scores.sum, keep, add);
        if (Type == SAGE_TYPE_I8) scale_weights(count, tile, split, &scores);
        by_rows(count, [&]<int R>(int row) { weigh_rows<Type, R>(&scores, row, tile, split, keep, add, out->acc); });
    }
}

void attend(const Queries* queries, const Pages* pages, int first, int last, Sums* out) {
    switch (pages->tile.type) {
        case SAGE_TYPE_F32: attend_of<SAGE_TYPE_F32>(queries, pages, first, last, out); break;
        case SAGE_TYPE_BF16: attend_of<SAGE_TYPE_BF16>(queries, pages, first, last, out); break;
        default: attend_of<SAGE_TYPE_I8>(queries, pages, first, last, out); break;
    }
}

}  // namespace
}  // namespace sage
