// Attention of a few queries over pages of keys and values, by one instruction set's primitives.
#pragma once

#include <float.h>
#include <math.h>

#include "kernels.h"

namespace sage {
namespace {

constexpr float kNone = -INFINITY;

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

}  // namespace
}  // namespace sage
