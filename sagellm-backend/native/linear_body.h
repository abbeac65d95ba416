// Rows of activations times packed matrices, by one instruction set's primitives.
#pragma once

#include <float.h>
#include <math.h>

#include "kernels.h"

namespace sage {
namespace {

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

}  // namespace
}  // namespace sage
