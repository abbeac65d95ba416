// The kernels over one instruction set's primitives. Included once by each, inside its own translation unit.
#pragma once

#include <float.h>
#include <math.h>

#include "kernels.h"

namespace sage {
namespace {

constexpr float kNone = -INFINITY;
constexpr int kStreamedRows = 2;  // up to so many rows the weights come from memory faster than they are used
constexpr int kAhead = 4096;      // bytes that weights are asked for before they are used

// -- activations ------------------------------------------------------------------------------------------------------

SAGE_INLINE void quantize_block(const float* x, int8_t* q, float* d, float* ds, int32_t* sum) {
    const F16 a = load(x), b = load(x + 16);
    const float most = largest(max16(abs16(a), abs16(b)));
    const float scale = most / 127.0f, inverse = most > 0.0f ? 127.0f / most : 0.0f;
    store_quants(q, a * inverse);
    store_quants(q + 16, b * inverse);
    int32_t total = 0;
    for (int i = 0; i < kBlock; i++) total += q[i];
    *d = scale;
    *sum = total;
    *ds = scale * float(total);
}

void prepare_block(int kind, const float* x, int row, int block, Rows* rows) {
    if (kind == SAGE_BF16) {
        uint16_t* h = rows->h + long(row) * ((rows->cols + 1) & ~1) + block * kBlock;
        store_bf16(h, load(x));
        store_bf16(h + 16, load(x + 16));
        return;
    }
    const long at = long(row) * (rows->cols / kBlock) + block;
    quantize_block(x, rows->q + at * kBlock, rows->d + at, rows->ds + at, rows->sum + at);
}

void prepare(int kind, const float* x, long ld, int first, int last, Rows* rows) {
    const int blocks = rows->cols / kBlock;
    for (int row = first; row < last; row++) {
        const float* from = x + long(row - first) * ld;
        for (int block = 0; block < blocks; block++) prepare_block(kind, from + block * kBlock, row, block, rows);
        if (kind == SAGE_BF16) {
            const int width = (rows->cols + 1) & ~1;
            uint16_t* h = rows->h + long(row) * width;
            for (int i = blocks * kBlock; i < width; i++) h[i] = i < rows->cols ? to_bf16(from[i]) : 0;
        }
    }
}

// -- matrices ---------------------------------------------------------------------------------------------------------

// R rows times G groups of 16 outputs, block by block: integers within a block, floats across.
template <int Kind, int R, int G>
SAGE_INLINE void quant_tile(const uint8_t* data, const Layout& at, int cols, const Rows* rows, int row, F16 (&out)[R][G]) {
    const int blocks = cols / kBlock;
    const int8_t* q = rows->q + long(row) * cols;
    const long meta = long(row) * blocks;
    for (int r = 0; r < R; r++) {
        for (int g = 0; g < G; g++) out[r][g] = F16{};
    }
    for (int b = 0; b < blocks; b++) {
        const uint8_t* at_block = data + b * at.block;
        if (R <= kStreamedRows) {
            for (size_t line = 0; line < at.block; line += 64) __builtin_prefetch(at_block + line + kAhead);
        }
        I16 acc[R][G];
        for (int r = 0; r < R; r++) {
            const int32_t start = Kind == SAGE_Q4_1 ? 0 : -(Kind == SAGE_Q4_0 ? 8 : 128) * rows->sum[meta + r * blocks + b];
            for (int g = 0; g < G; g++) acc[r][g] = I16{} + start;
        }
        const int32_t* x = reinterpret_cast<const int32_t*>(q + b * kBlock);
        if (Kind == SAGE_Q8_0) {
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                Bytes w[G];
                for (int g = 0; g < G; g++) w[g] = load_bytes(at_block + g * at.group + j * 64);
                for (int r = 0; r < R; r++) {
                    for (int g = 0; g < G; g++) acc[r][g] = dot_full(acc[r][g], w[g], x[r * (cols / 4) + j]);
                }
            }
        } else {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                Bytes w[G];
                for (int g = 0; g < G; g++) w[g] = load_bytes(at_block + g * at.group + j * 64);
                for (int g = 0; g < G; g++) {
                    const Bytes low_half = low_nibbles(w[g]), high_half = high_nibbles(w[g]);
                    for (int r = 0; r < R; r++) {
                        acc[r][g] = dot_small(acc[r][g], low_half, x[r * (cols / 4) + j]);
                        acc[r][g] = dot_small(acc[r][g], high_half, x[r * (cols / 4) + j + 4]);
                    }
                }
            }
        }
        for (int g = 0; g < G; g++) {
            const F16 scale = load_half(at_block + g * at.group + at.quants);
            F16 offset{};
            if (Kind == SAGE_Q4_1) offset = load_half(at_block + g * at.group + at.quants + 32);
            for (int r = 0; r < R; r++) {
                const long m = meta + r * blocks + b;
                out[r][g] += __builtin_convertvector(acc[r][g], F16) * (scale * rows->d[m]);
                if (Kind == SAGE_Q4_1) out[r][g] += offset * rows->ds[m];
            }
        }
    }
}

template <int R, int G>
SAGE_INLINE void bf16_tile(const uint8_t* data, const Layout& at, int cols, const Rows* rows, int row, F16 (&out)[R][G]) {
    const int pairs = (cols + 1) / 2;
    const uint32_t* x = reinterpret_cast<const uint32_t*>(rows->h) + long(row) * pairs;
    for (int r = 0; r < R; r++) {
        for (int g = 0; g < G; g++) out[r][g] = F16{};
    }
#pragma GCC unroll 4
    for (int k = 0; k < pairs; k++) {
        for (int g = 0; g < G; g++) {
            const U16 w = *reinterpret_cast<const U16u*>(data + g * at.group + size_t(k) * 64);
            for (int r = 0; r < R; r++) out[r][g] = dot_bf16(out[r][g], w, x[long(r) * pairs + k]);
        }
    }
}

template <int Kind, int R, int G>
__attribute__((noinline)) void tile(const SageMatrix* m, const Layout& at, int group, const Rows* rows, int row, float* out,
                                    long ld) {
    F16 sums[R][G];
    const uint8_t* data = m->data + group * at.group;
    if (Kind == SAGE_BF16) {
        bf16_tile<R, G>(data, at, m->cols, rows, row, sums);
    } else {
        quant_tile<Kind, R, G>(data, at, m->cols, rows, row, sums);
    }
    for (int r = 0; r < R; r++) {
        for (int g = 0; g < G; g++) store(out + r * ld + g * kLanes, sums[r][g]);
    }
}

template <int Kind, int G>
void tiles(const SageMatrix* m, const Layout& at, int group, const Rows* rows, int r0, int r1, float* out, long ld) {
    int r = r0;
    for (; r + 6 <= r1; r += 6) tile<Kind, 6, G>(m, at, group, rows, r, out + (r - r0) * ld, ld);
    float* rest = out + (r - r0) * ld;
    switch (r1 - r) {
        case 5: tile<Kind, 5, G>(m, at, group, rows, r, rest, ld); break;
        case 4: tile<Kind, 4, G>(m, at, group, rows, r, rest, ld); break;
        case 3: tile<Kind, 3, G>(m, at, group, rows, r, rest, ld); break;
        case 2: tile<Kind, 2, G>(m, at, group, rows, r, rest, ld); break;
        case 1: tile<Kind, 1, G>(m, at, group, rows, r, rest, ld); break;
        default: break;
    }
}

template <int Kind>
void linear_of(const SageMatrix* m, int g0, int g1, const Rows* rows, int r0, int r1, float* out, long ld) {
    const Layout at(Kind, m->cols);
    int g = g0;
    if (r1 - r0 <= kStreamedRows) {
        // One stream of memory after another.
        for (; g < g1; g++) tiles<Kind, 1>(m, at, g, rows, r0, r1, out + (g - g0) * kLanes, ld);
    }
    for (; g + 2 <= g1; g += 2) tiles<Kind, 2>(m, at, g, rows, r0, r1, out + (g - g0) * kLanes, ld);
    if (g < g1) tiles<Kind, 1>(m, at, g, rows, r0, r1, out + (g - g0) * kLanes, ld);
}

void linear(const SageMatrix* m, int g0, int g1, const Rows* rows, int r0, int r1, float* out, long ld) {
    switch (m->kind) {
        case SAGE_Q4_0: linear_of<SAGE_Q4_0>(m, g0, g1, rows, r0, r1, out, ld); break;
        case SAGE_Q4_1: linear_of<SAGE_Q4_1>(m, g0, g1, rows, r0, r1, out, ld); break;
        case SAGE_Q8_0: linear_of<SAGE_Q8_0>(m, g0, g1, rows, r0, r1, out, ld); break;
        default: linear_of<SAGE_BF16>(m, g0, g1, rows, r0, r1, out, ld); break;
    }
    if (m->bias == nullptr) return;
    const int count = (g1 * kLanes < m->rows ? g1 * kLanes : m->rows) - g0 * kLanes;
    for (int r = 0; r < r1 - r0; r++) {
        for (int i = 0; i < count; i++) out[r * ld + i] += m->bias[g0 * kLanes + i];
    }
}

// -- between matrices -------------------------------------------------------------------------------------------------

void rms_norm(const float* x, const float* weight, int size, float eps, float* out) {
    F16 a{}, b{};
    int i = 0;
    for (; i + 32 <= size; i += 32) {
        const F16 u = load(x + i), v = load(x + i + 16);
        a += u * u;
        b += v * v;
    }
    float total = add_up(a + b);
    for (int j = i; j < size; j++) total += x[j] * x[j];
    const float scale = 1.0f / sqrtf(total / float(size) + eps);
    for (i = 0; i + 16 <= size; i += 16) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < size; i++) out[i] = x[i] * scale * weight[i];
}

void silu_mul(float* gate, const float* up, int n) {
    for (int i = 0; i < n; i += kLanes) {
        const F16 g = load(gate + i);
        const F16 e = exp16(min16(-g, splat(88.0f)));
        store(gate + i, g / (1.0f + e) * load(up + i));
    }
}

// -- attention --------------------------------------------------------------------------------------------------------

// Address of a row of the pool, walked block by block.
SAGE_INLINE long slot_of(const Pages* pages, int t) {
    return long(pages->table[t / pages->block_size]) * pages->block_size + t % pages->block_size;
}

// Ask for 16 rows that are wanted soon: blocks lie anywhere, so the processor cannot guess.
SAGE_INLINE void ask_for(const Pages* pages, const void* plane, int at, int end) {
    const long bytes = long(pages->dim) * (pages->type == SAGE_TYPE_BF16 ? 2 : 4);
    const int stop = at + 16 < end ? at + 16 : end;
    for (int t = at; t < stop;) {
        const int inside = pages->block_size - t % pages->block_size, count = inside < stop - t ? inside : stop - t;
        const char* from = static_cast<const char*>(plane) + slot_of(pages, t) * bytes;
        for (long line = 0; line < count * bytes; line += 64) __builtin_prefetch(from + line);
        t += count;
    }
}

// Sixteen rows from `at`. Past the end the last repeats: it is masked, but must be memory that was written.
SAGE_INLINE void slots_of(const Pages* pages, int at, int end, long (&slots)[16]) {
    for (int i = 0; i < 16;) {
        const int t = at + i;
        if (t >= end) {
            slots[i] = slots[i - 1];
            i++;
            continue;
        }
        const int inside = pages->block_size - t % pages->block_size;
        const long first = slot_of(pages, t);
        for (int j = 0; j < inside && i < 16 && at + i < end; j++, i++) slots[i] = first + j;
    }
}

// Sixteen keys turned so that one vector holds the same dimensions of all: pairs of bf16, or single floats.
template <int Type>
SAGE_INLINE void load_keys(const Pages* pages, int at, int end, uint32_t (*turned)[16]) {
    const int words = Type == SAGE_TYPE_BF16 ? pages->dim / 2 : pages->dim;
    const uint32_t* row[16];
    long slots[16];
    slots_of(pages, at, end, slots);
    for (int i = 0; i < 16; i++) row[i] = static_cast<const uint32_t*>(pages->keys) + slots[i] * words;
    int w = 0;
    for (; w + 16 <= words; w += 16) {
        U16 r[16];
        for (int i = 0; i < 16; i++) r[i] = *reinterpret_cast<const U16u*>(row[i] + w);
        transpose(r);
        for (int i = 0; i < 16; i++) *reinterpret_cast<U16u*>(turned[w + i]) = r[i];
    }
    for (; w < words; w++) {
        for (int i = 0; i < 16; i++) turned[w][i] = row[i][w];
    }
}

template <int Type>
SAGE_INLINE void load_values(const Pages* pages, int at, int end, float* out) {
    long slots[16];
    slots_of(pages, at, end, slots);
    for (int i = 0; i < 16; i++) {
        const long slot = slots[i];
        if (Type == SAGE_TYPE_BF16) {
            const uint16_t* row = static_cast<const uint16_t*>(pages->values) + slot * pages->dim;
            for (int d = 0; d < pages->dim; d += 16) store(out + i * pages->dim + d, load_bf16(row + d));
        } else {
            const float* row = static_cast<const float*>(pages->values) + slot * pages->dim;
            for (int d = 0; d < pages->dim; d += 16) store(out + i * pages->dim + d, load(row + d));
        }
    }
}

// Scores of up to four queries over 16 keys.
template <int Type, int R>
SAGE_INLINE void score(const float* const* q, const uint32_t (*packed)[kMaxHead], const uint32_t (*turned)[16], int dim,
                       F16 (&out)[R]) {
    F16 even[R], odd[R];
    for (int r = 0; r < R; r++) even[r] = odd[r] = F16{};
    if (Type == SAGE_TYPE_BF16) {
        for (int w = 0; w < dim / 2; w += 2) {
            const U16 k0 = *reinterpret_cast<const U16u*>(turned[w]), k1 = *reinterpret_cast<const U16u*>(turned[w + 1]);
            for (int r = 0; r < R; r++) {
                even[r] = dot_bf16(even[r], k0, packed[r][w]);
                odd[r] = dot_bf16(odd[r], k1, packed[r][w + 1]);
            }
        }
    } else {
        for (int w = 0; w < dim; w += 2) {
            const F16 k0 = (F16)*reinterpret_cast<const U16u*>(turned[w]), k1 = (F16)*reinterpret_cast<const U16u*>(turned[w + 1]);
            for (int r = 0; r < R; r++) {
                even[r] += k0 * q[r][w];
                odd[r] += k1 * q[r][w + 1];
            }
        }
    }
    for (int r = 0; r < R; r++) out[r] = even[r] + odd[r];
}

template <int Type>
void attend_of(const Queries* queries, const Pages* pages, int begin, int end, Partial* out) {
    const int count = queries->count, dim = pages->dim;
    alignas(64) float scores[kMaxQueries][kSplit];
    alignas(64) uint32_t turned[kMaxHead][16];
    alignas(64) float values[16 * kMaxHead];
    alignas(64) uint32_t packed[kMaxQueries][kMaxHead];
    const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (Type == SAGE_TYPE_BF16) {
        for (int r = 0; r < count; r++) {
            for (int d = 0; d < dim; d += 16) store_bf16(reinterpret_cast<uint16_t*>(packed[r]) + d, load(queries->q[r] + d));
        }
    }
    F16 most[kMaxQueries];
    for (int r = 0; r < count; r++) most[r] = splat(kNone);
    for (int t = begin; t < end; t += 16) {
        ask_for(pages, pages->values, t, end);
        ask_for(pages, pages->keys, t + 16, end);
        load_keys<Type>(pages, t, end, turned);
        int r = 0;
        const auto keep = [&](int row, F16 s) {
            const I16 key = lane + t;
            const F16 seen = (key < queries->limit[row]) & (key >= queries->first[row]) ? s : splat(kNone);
            store(&scores[row][t - begin], seen);
            most[row] = max16(most[row], seen);
        };
        for (; r + 4 <= count; r += 4) {
            F16 s[4];
            score<Type, 4>(queries->q + r, packed + r, turned, dim, s);
            for (int i = 0; i < 4; i++) keep(r + i, s[i]);
        }
        if (r + 3 == count) {
            F16 s[3];
            score<Type, 3>(queries->q + r, packed + r, turned, dim, s);
            for (int i = 0; i < 3; i++) keep(r + i, s[i]);
            r += 3;
        }
        for (; r < count; r++) {
            F16 s[1];
            score<Type, 1>(queries->q + r, packed + r, turned, dim, s);
            keep(r, s[0]);
        }
    }
    for (int r = 0; r < count; r++) {
        const float top = largest(most[r]);
        F16 total{};
        for (int t = 0; t < end - begin; t += 16) {
            // A query that sees nothing of this split has only -inf: its weights are 0, not exp(-inf + inf).
            const F16 e = top == kNone ? F16{} : exp16(load(&scores[r][t]) - top);
            store(&scores[r][t], e);
            total += e;
        }
        out[r].max = top;
        out[r].sum = add_up(total);
        for (int d = 0; d < dim; d += 16) store(out[r].acc + d, F16{});
    }
    for (int t = begin; t < end; t += 16) {
        load_values<Type>(pages, t, end, values);
        const int keys = end - t < 16 ? end - t : 16;
        for (int r = 0; r < count; r++) {
            const float* weight = &scores[r][t - begin];
            int d = 0;
            for (; d + 64 <= dim; d += 64) {
                float* acc = out[r].acc + d;
                F16 a0 = load(acc), a1 = load(acc + 16), a2 = load(acc + 32), a3 = load(acc + 48);
                for (int k = 0; k < keys; k++) {
                    const float* v = values + k * dim + d;
                    const float w = weight[k];
                    a0 += load(v) * w;
                    a1 += load(v + 16) * w;
                    a2 += load(v + 32) * w;
                    a3 += load(v + 48) * w;
                }
                store(acc, a0);
                store(acc + 16, a1);
                store(acc + 32, a2);
                store(acc + 48, a3);
            }
            for (; d < dim; d += 16) {
                F16 a = load(out[r].acc + d);
                for (int k = 0; k < keys; k++) a += load(values + k * dim + d) * weight[k];
                store(out[r].acc + d, a);
            }
        }
    }
}

void attend(const Queries* queries, const Pages* pages, int begin, int end, Partial* out) {
    if (pages->type == SAGE_TYPE_BF16) {
        attend_of<SAGE_TYPE_BF16>(queries, pages, begin, end, out);
    } else {
        attend_of<SAGE_TYPE_F32>(queries, pages, begin, end, out);
    }
}

void merge(Partial* into, const Partial* from, int dim) {
    if (from->max == kNone) return;
    const float top = into->max > from->max ? into->max : from->max;
    const float keep = into->max == kNone ? 0.0f : expf(into->max - top), add = expf(from->max - top);
    into->max = top;
    into->sum = into->sum * keep + from->sum * add;
    for (int d = 0; d < dim; d += 16) store(into->acc + d, load(into->acc + d) * keep + load(from->acc + d) * add);
}

constexpr Kernels kTable = {prepare, prepare_block, linear, rms_norm, silu_mul, attend, merge};

}  // namespace
}  // namespace sage
