// AVX2 with FMA and F16C.
#pragma once
#include <immintrin.h>
#include "vec.h"

namespace sage {
namespace {

constexpr int kMostRows = 3, kMostGroups = 1;  // of a tile: sums and accumulators fit the registers

struct Bytes {
    __m256i half[2];
};

// Of attention, what fits the registers beside four queries.
constexpr int kTilesAtOnce = 1, kDimsAtOnce = 1;

SAGE_INLINE Bytes load_bytes(const uint8_t* p) {
    const __m256i* v = reinterpret_cast<const __m256i*>(p);
    return {{_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)}};
}
// Of each byte the bits of `mask`, after moving them up by so many.
SAGE_INLINE __m256i field(__m256i b, int up, int mask) {
    const __m256i moved = up == 0 ? b : up > 0 ? _mm256_slli_epi16(b, up) : _mm256_srli_epi16(b, -up);
    return _mm256_and_si256(moved, _mm256_set1_epi8(char(mask)));
}
SAGE_INLINE Bytes field(const Bytes& b, int up, int mask) { return {{field(b.half[0], up, mask), field(b.half[1], up, mask)}}; }
SAGE_INLINE Bytes either(const Bytes& a, const Bytes& b) {
    return {{_mm256_or_si256(a.half[0], b.half[0]), _mm256_or_si256(a.half[1], b.half[1])}};
}
SAGE_INLINE I16 join(__m256i a, __m256i b) {
    I16 v;
    memcpy(&v, &a, 32);
    memcpy(reinterpret_cast<char*>(&v) + 32, &b, 32);
    return v;
}
SAGE_INLINE __m256i dot_small(__m256i w, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}
SAGE_INLINE __m256i dot_full(__m256i w, __m256i x) {
    // Two products of full bytes overflow 16 bits: the top bit goes by itself.
    const __m256i seven = dot_small(_mm256_and_si256(w, _mm256_set1_epi8(0x7f)), x);
    const __m256i top = _mm256_and_si256(_mm256_srli_epi16(w, 7), _mm256_set1_epi8(1));
    return _mm256_add_epi32(seven, _mm256_madd_epi16(_mm256_maddubs_epi16(top, x), _mm256_set1_epi16(128)));
}
SAGE_INLINE I16 dot_small(I16 acc, const Bytes& w, int32_t x) {
    const __m256i v = _mm256_set1_epi32(x);
    return acc + join(dot_small(w.half[0], v), dot_small(w.half[1], v));
}
SAGE_INLINE I16 dot_full(I16 acc, const Bytes& w, int32_t x) {
    const __m256i v = _mm256_set1_epi32(x);
    return acc + join(dot_full(w.half[0], v), dot_full(w.half[1], v));
}
SAGE_INLINE F16 dot_bf16(F16 acc, U16 w, uint32_t x) {
    acc += (F16)(w << 16) * from_bf16(uint16_t(x));
    return acc + (F16)(w & 0xffff0000u) * from_bf16(uint16_t(x >> 16));
}
SAGE_INLINE F16 load_half(const uint8_t* p) {
    const __m128i* v = reinterpret_cast<const __m128i*>(p);
    return (F16)join((__m256i)_mm256_cvtph_ps(_mm_loadu_si128(v)), (__m256i)_mm256_cvtph_ps(_mm_loadu_si128(v + 1)));
}
SAGE_INLINE U16 widen_f8(const uint8_t* p) { return widen_f8_by_products(p); }
// 16 signed bytes.
SAGE_INLINE I16 load_small(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return join(_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)));
}
SAGE_INLINE float store_quants(int8_t* p, F16 x) {
    __m256 a, b;
    memcpy(&a, &x, 32);
    memcpy(&b, reinterpret_cast<const char*>(&x) + 32, 32);
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    a = _mm256_round_ps(a, nearest);
    b = _mm256_round_ps(b, nearest);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    return add_up((F16)join((__m256i)a, (__m256i)b));
}

}  // namespace
}  // namespace sage
