// Any processor: plain C++ that the compiler vectorises as far as it can.
#pragma once
#include <math.h>
#include "vec.h"

namespace sage {
namespace {

constexpr int kMostRows = 2, kMostGroups = 1;  // of a tile: nothing is known of the registers

struct Bytes {
    uint8_t b[64];
};

// Of attention, what fits the registers beside four queries.
constexpr int kTilesAtOnce = 1, kDimsAtOnce = 1;

SAGE_INLINE Bytes load_bytes(const uint8_t* p) {
    Bytes v;
    memcpy(v.b, p, 64);
    return v;
}
// Of each byte the bits of `mask`, after moving them up by so many.
SAGE_INLINE Bytes field(Bytes v, int up, int mask) {
    for (int i = 0; i < 64; i++) v.b[i] = uint8_t((up < 0 ? v.b[i] >> -up : v.b[i] << up) & mask);
    return v;
}
SAGE_INLINE Bytes either(Bytes a, const Bytes& b) {
    for (int i = 0; i < 64; i++) a.b[i] |= b.b[i];
    return a;
}
SAGE_INLINE I16 dot_full(I16 acc, const Bytes& w, int32_t x) {
    int8_t q[4];
    memcpy(q, &x, 4);
    int32_t sums[16];
    for (int i = 0; i < 16; i++) {
        sums[i] = w.b[4 * i] * q[0] + w.b[4 * i + 1] * q[1] + w.b[4 * i + 2] * q[2] + w.b[4 * i + 3] * q[3];
    }
    I16 v;
    memcpy(&v, sums, 64);
    return acc + v;
}
SAGE_INLINE I16 dot_small(I16 acc, const Bytes& w, int32_t x) { return dot_full(acc, w, x); }
SAGE_INLINE F16 dot_bf16(F16 acc, U16 w, uint32_t x) {
    acc += (F16)(w << 16) * from_bf16(uint16_t(x));
    return acc + (F16)(w & 0xffff0000u) * from_bf16(uint16_t(x >> 16));
}
SAGE_INLINE F16 load_half(const uint8_t* p) {
    // The exponent is moved by a product, which makes subnormals right too; infinities stay out of weights.
    const U16 h = __builtin_convertvector(*reinterpret_cast<const H16u*>(p), U16);
    const F16 magnitude = (F16)((h & 0x7fffu) << 13) * 5.192296858534828e33f;
    return (F16)((U16)magnitude | ((h & 0x8000u) << 16));
}
SAGE_INLINE U16 widen_f8(const uint8_t* p) { return widen_f8_by_products(p); }
// 16 signed bytes.
SAGE_INLINE I16 load_small(const uint8_t* p) {
    int32_t v[16];
    for (int i = 0; i < 16; i++) v[i] = int8_t(p[i]);
    I16 to;
    memcpy(&to, v, 64);
    return to;
}
SAGE_INLINE float store_quants(int8_t* p, F16 x) {
    float sum = 0.0f;
    for (int i = 0; i < 16; i++) {
        p[i] = int8_t(lrintf(x[i]));
        sum += float(p[i]);
    }
    return sum;
}

}  // namespace
}  // namespace sage
