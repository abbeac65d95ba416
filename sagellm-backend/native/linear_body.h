// Rows of activations times packed matrices, by one instruction set's primitives.
#pragma once

#include <float.h>
#include <math.h>

#include "kernels.h"

namespace sage {
namespace {

constexpr int kStreamedRows = 2;  // up to so many rows the weights come from memory faster than they are used

// -- activations ------------------------------------------------------------------------------------------------------

SAGE_INLINE void quantize_block(const float* x, int8_t* q, float* d, float* ds, int32_t* sum) {
    const F16 a = load(x), b = load(x + 16);
    const float most = largest(max16(abs16(a), abs16(b)));
    const float scale = most / 127.0f, inverse = most > 0.0f ? 127.0f / most : 0.0f;
    const float first = store_quants(q, a * inverse), second = store_quants(q + 16, b * inverse);
    *d = scale;
    sum[0] = int32_t(first);
    sum[1] = int32_t(second);
    *ds = scale * (first + second);
}

void prepare_block(int kind, const float* x, int row, int block, Rows* rows) {
    if (kind == SAGE_BF16) {
        uint16_t* h = rows->h + long(row) * ((rows->cols + 1) & ~1) + block * kBlock;
        store_bf16(h, load(x));
        store_bf16(h + 16, load(x + 16));
        return;
    }
    const long at = long(row) * (rows->cols / kBlock) + block;
    quantize_block(x, rows->q + at * kBlock, rows->d + at, rows->ds + at, rows->sum + 2 * at);
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

// Columns 4 j.. of a block of 16 rows, one unsigned byte each.
template <int Kind>
SAGE_INLINE Bytes quants(const uint8_t* block, int j) {
    constexpr Format f = kFormats[Kind];
    if (f.low == 8) return load_bytes(block + j * 64);
    // Two fields of four bits a byte, or four of two.
    Bytes q = f.low == 4 ? field(load_bytes(block + j % 4 * 64), -4 * (j / 4), 15)
                         : field(load_bytes(block + j / 4 * 64), -2 * (j % 4), 3);
    const uint8_t* high = block + f.low * 64;
    if (f.high == 1) q = either(q, field(load_bytes(high), f.low - j, 1 << f.low));
    if (f.high == 2) q = either(q, field(load_bytes(high + j / 4 * 64), f.low - 2 * (j % 4), 3 << f.low));
    return q;
}

SAGE_INLINE F16 floats(I16 v) { return __builtin_convertvector(v, F16); }

// What a part of a block multiplies with. Products of float16 and integers of 8 bits are exact in float32.
template <int Kind>
SAGE_INLINE F16 scale_of(const uint8_t* span, const uint8_t* small, int part) {
    constexpr Format f = kFormats[Kind];
    const F16 scale = load_half(span);
    if (f.span == 1) return scale;
    const I16 own = load_small(small + part * kLanes);
    return scale * floats(f.parts == 2 && f.offsets ? own & 15 : own);
}

template <int Kind>
SAGE_INLINE F16 offset_of(const uint8_t* span, const uint8_t* small, int part) {
    constexpr Format f = kFormats[Kind];
    const F16 offset = load_half(span + 32);
    if (f.span == 1) return offset;
    // GGUF's K formats take it away.
    return -offset * floats(f.parts == 2 ? load_small(small + part * kLanes) >> 4 & 15 : load_small(small + kLanes));
}

// R rows times G groups of 16 outputs, block by block: integers within a part of a block, floats across.
template <int Kind, int R, int G>
SAGE_INLINE void quant_tile(const uint8_t* data, int cols, const Rows* rows, int row, F16 (&out)[R][G]) {
    constexpr Format f = kFormats[Kind];
    constexpr int kPart = 8 / f.parts;  // steps of four columns under one scale
    const Layout at(Kind, cols);
    const long blocks = cols / kBlock;
    const int8_t* q = rows->q + row * blocks * kBlock;
    const float *d = rows->d + row * blocks, *ds = rows->ds + row * blocks;
    const int32_t* sum = rows->sum + row * blocks * 2;
    for (int r = 0; r < R; r++) {
        for (int g = 0; g < G; g++) out[r][g] = F16{};
    }
    const auto block_of = [&](const uint8_t* span, const uint8_t* small, const uint8_t* block, long b) {
        const int32_t* x = reinterpret_cast<const int32_t*>(q + b * kBlock);
        I16 acc[R][G];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            if (j % kPart == 0) {
                for (int r = 0; r < R; r++) {
                    const int32_t* s = sum + 2 * (r * blocks + b);
                    const int32_t start = f.zero == 0 ? 0 : -f.zero * (kPart == 4 ? s[j / 4] : s[0] + s[1]);
                    for (int g = 0; g < G; g++) acc[r][g] = I16{} + start;
                }
            }
            Bytes w[G];
            for (int g = 0; g < G; g++) w[g] = quants<Kind>(block + g * at.group, j);
            for (int r = 0; r < R; r++) {
                for (int g = 0; g < G; g++) {
                    const int32_t four = x[r * (blocks * kBlock / 4) + j];
                    acc[r][g] = f.bits() == 8 ? dot_full(acc[r][g], w[g], four) : dot_small(acc[r][g], w[g], four);
                }
            }
            if ((j + 1) % kPart == 0) {
                for (int g = 0; g < G; g++) {
                    const F16 scale = scale_of<Kind>(span + g * at.group, small + g * at.group, j / kPart);
                    for (int r = 0; r < R; r++) out[r][g] += floats(acc[r][g]) * (scale * d[r * blocks + b]);
                }
            }
        }
        for (int part = 0; part < (f.offsets ? f.parts : 0); part++) {
            for (int g = 0; g < G; g++) {
                const F16 offset = offset_of<Kind>(span + g * at.group, small + g * at.group, part);
                for (int r = 0; r < R; r++) {
                    const long m = r * blocks + b;
                    out[r][g] += offset * (f.parts == 2 ? d[m] * float(sum[2 * m + part]) : ds[m]);
                }
            }
        }
    };
    for (long b = 0; b < blocks; b += f.span, data += at.span) {
        const uint8_t *small = data + at.small, *block = data + at.quants;
        for (int i = 0; i < f.span; i++) block_of(data, small + i * Layout::kSmall, block + i * at.block, b + i);
    }
}

template <int R, int G>
SAGE_INLINE void bf16_tile(const uint8_t* data, int cols, const Rows* rows, int row, F16 (&out)[R][G]) {
    const Layout at(SAGE_BF16, cols);
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

template <int R, int G>
SAGE_INLINE void f8_tile(const uint8_t* data, int cols, const Rows* rows, int row, F16 (&out)[R][G]) {
    constexpr int kPairs = kBlock / 2;
    const Layout at(SAGE_F8, cols);
    const uint32_t* x = reinterpret_cast<const uint32_t*>(rows->h) + long(row) * (cols / 2);
    for (int r = 0; r < R; r++) {
        for (int g = 0; g < G; g++) out[r][g] = F16{};
    }
    for (long b = 0; b < cols / kBlock; b++, data += at.span, x += kPairs) {
        F16 acc[R][G];
        for (int r = 0; r < R; r++) {
            for (int g = 0; g < G; g++) acc[r][g] = F16{};
        }
#pragma GCC unroll 4
        for (int k = 0; k < kPairs; k++) {
            for (int g = 0; g < G; g++) {
                const U16 w = widen_f8(data + g * at.group + at.quants + size_t(k) * 32);
                for (int r = 0; r < R; r++) acc[r][g] = dot_bf16(acc[r][g], w, x[long(r) * (cols / 2) + k]);
            }
        }
        for (int g = 0; g < G; g++) {
            const F16 scale = load(reinterpret_cast<const float*>(data + g * at.group));
            for (int r = 0; r < R; r++) out[r][g] += acc[r][g] * scale;
        }
    }
}

template <int Kind, int R, int G>
__attribute__((noinline)) void tile(const uint8_t* data, int cols, const Rows* rows, int row, float* out, long ld) {
    F16 sums[R][G];
    if constexpr (Kind == SAGE_BF16) {
        bf16_tile<R, G>(data, cols, rows, row, sums);
    } else if constexpr (Kind == SAGE_F8) {
        f8_tile<R, G>(data, cols, rows, row, sums);
    } else {
        quant_tile<Kind, R, G>(data, cols, rows, row, sums);
    }
    for (int r = 0; r < R; r++) {
        for (int g = 0; g < G; g++) store(out + r * ld + g * kLanes, sums[r][g]);
    }
}

// As many rows as are left, up to R.
template <int Kind, int R, int G>
int next_tile(const uint8_t* data, int cols, const Rows* rows, int row, int left, float* out, long ld) {
    if constexpr (R > 1) {
        if (left < R) return next_tile<Kind, R - 1, G>(data, cols, rows, row, left, out, ld);
    }
    tile<Kind, R, G>(data, cols, rows, row, out, ld);
    return R;
}

template <int Kind, int G>
void tiles(const uint8_t* data, int cols, const Rows* rows, int r0, int r1, float* out, long ld) {
    for (int r = r0; r < r1;) r += next_tile<Kind, kMostRows, G>(data, cols, rows, r, r1 - r, out + (r - r0) * ld, ld);
}

// Groups g0..g1 of one segment.
template <int Kind>
void segment_of(const SageSegment& s, int cols, int g0, int g1, const Rows* rows, int r0, int r1, float* out, long ld) {
    const size_t group = Layout(Kind, cols).group;
    // Of few rows one stream of memory after another: the processor fetches ahead, better than when it is asked to.
    const int wide = r1 - r0 <= kStreamedRows ? 1 : kMostGroups;
    int g = g0;
    if (wide > 1) {
        for (; g + wide <= g1; g += wide) tiles<Kind, kMostGroups>(s.data + g * group, cols, rows, r0, r1, out + (g - g0) * kLanes, ld);
    }
    for (; g < g1; g++) tiles<Kind, 1>(s.data + g * group, cols, rows, r0, r1, out + (g - g0) * kLanes, ld);
}

// By SageKind.
constexpr decltype(&segment_of<SAGE_BF16>) kSegmentOf[] = {
    segment_of<SAGE_BF16>, segment_of<SAGE_Q4_0>, segment_of<SAGE_Q4_1>, segment_of<SAGE_Q5_0>,
    segment_of<SAGE_Q5_1>, segment_of<SAGE_Q8_0>, segment_of<SAGE_Q2_K>, segment_of<SAGE_Q3_K>,
    segment_of<SAGE_Q4_K>, segment_of<SAGE_Q5_K>, segment_of<SAGE_Q6_K>, segment_of<SAGE_F8>,
};

void linear(const SageMatrix* m, int g0, int g1, const Rows* rows, int r0, int r1, float* out, long ld) {
    int first = 0;
    for (int i = 0; i < m->segments && first < g1; i++) {
        const SageSegment& s = m->segment[i];
        const int last = first + groups_of(s.rows);
        const int from = g0 > first ? g0 : first, to = g1 < last ? g1 : last;
        if (from < to) kSegmentOf[s.kind](s, m->cols, from - first, to - first, rows, r0, r1, out + (from - g0) * kLanes, ld);
        first = last;
    }
    if (m->bias == nullptr) return;
    const int count = (g1 * kLanes < m->rows ? g1 * kLanes : m->rows) - g0 * kLanes;
    for (int r = 0; r < r1 - r0; r++) {
        for (int i = 0; i < count; i++) out[r * ld + i] += m->bias[g0 * kLanes + i];
    }
}

}  // namespace
}  // namespace sage
