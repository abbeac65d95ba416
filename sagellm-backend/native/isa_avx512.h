// AVX-512 with VNNI and BF16.
#pragma once
#include <immintrin.h>
#include "vec.h"

namespace sage {
namespace {

constexpr int kMostRows = 6, kMostGroups = 2;  // of a tile: sums and accumulators fit the registers

typedef __m512i Bytes;

// Of attention, what fits the registers beside four queries.
constexpr int kTilesAtOnce = 4, kDimsAtOnce = 4;

SAGE_INLINE Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
// Of each byte the bits of `mask`, after moving them up by so many.
SAGE_INLINE Bytes field(Bytes b, int up, int mask) {
    const Bytes moved = up == 0 ? b : up > 0 ? _mm512_slli_epi16(b, up) : _mm512_srli_epi16(b, -up);
    return _mm512_and_si512(moved, _mm512_set1_epi8(char(mask)));
}
SAGE_INLINE Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
// Of each lane: acc + the sum of 4 products of unsigned bytes w and signed bytes x.
SAGE_INLINE I16 dot_small(I16 acc, Bytes w, int32_t x) {
    return (I16)_mm512_dpbusd_epi32((__m512i)acc, w, _mm512_set1_epi32(x));
}
SAGE_INLINE I16 dot_full(I16 acc, Bytes w, int32_t x) { return dot_small(acc, w, x); }
SAGE_INLINE F16 dot_bf16(F16 acc, U16 w, uint32_t x) {
    return (F16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(int32_t(x)));
}
SAGE_INLINE F16 load_half(const uint8_t* p) {
    return (F16)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// What widen_f8_by_products does, in integers. Moved to bfloat16's places, a code's exponent lacks the difference of biases;
// numbers below the normal ones lack what the table has for each of their eight fractions.
SAGE_INLINE U16 widen_f8(const uint8_t* p) {
    const __m512i lacking = _mm512_castsi128_si512(_mm_setr_epi16(0, 0x3b00 - 0x10, 0x3b80 - 0x20, 0x3bc0 - 0x30, 0x3c00 - 0x40,
                                                                  0x3c20 - 0x50, 0x3c40 - 0x60, 0x3c60 - 0x70));
    const __m512i code = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i moved = _mm512_and_si512(_mm512_slli_epi16(code, 4), _mm512_set1_epi16(short(0x87f0)));
    const __mmask32 below = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78));
    const __m512i bias = _mm512_mask_permutexvar_epi16(_mm512_set1_epi16(120 << 7), below, code, lacking);
    return (U16)_mm512_add_epi16(moved, bias);
}
// 16 signed bytes.
SAGE_INLINE I16 load_small(const uint8_t* p) {
    return (I16)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Round to the nearest even and keep 8 bits of each; what they add up to.
SAGE_INLINE float store_quants(int8_t* p, F16 x) {
    const __m512 rounded = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(rounded)));
    return add_up((F16)rounded);
}

}  // namespace
}  // namespace sage
