// Vectors of 16 by the compiler's vector extensions, which every instruction set lowers to its own registers.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace sage {
namespace {

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef float F16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t U16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t H16u __attribute__((vector_size(32), aligned(2), may_alias));

#define SAGE_INLINE static inline __attribute__((always_inline))

SAGE_INLINE F16 load(const float* p) { return *reinterpret_cast<const F16u*>(p); }
SAGE_INLINE void store(float* p, F16 v) { *reinterpret_cast<F16u*>(p) = v; }
SAGE_INLINE F16 splat(float x) { return F16{} + x; }

// Two columns of 16 rows, from 8-bit floats to bfloat16: no value changes. A float32 with the same exponent and fraction is
// 2^120 too small, which a product makes good for numbers below the normal ones too.
SAGE_INLINE U16 widen_f8_by_products(const uint8_t* p) {
    const U16 both = __builtin_convertvector(*reinterpret_cast<const H16u*>(p), U16);
    const auto widen = [](U16 code) {
        const F16 magnitude = (F16)((code & 0x7fu) << 20) * 0x1p120f;
        return (U16)magnitude | (code & 0x80u) << 24;
    };
    return widen(both) >> 16 | widen(both >> 8);
}

// A vector as wide as the processor's registers. The compiler keeps none that is wider in them round a loop, and takes
// comparisons of such apart into single numbers.
#if defined(__AVX512F__)
typedef F16 Register;
#elif defined(__AVX__)
typedef float Register __attribute__((vector_size(32)));
#else
typedef float Register __attribute__((vector_size(16)));
#endif
constexpr int kRegister = sizeof(Register) / sizeof(float);
// Comparisons of 16 are made of those of registers: a lane's bits are all set where one holds. Choices are then bit by bit.
union Registers {
    F16 whole;
    Register part[16 / kRegister];
};
union Answers {
    I16 whole;
    decltype(Register{} > Register{}) part[16 / kRegister];
};
SAGE_INLINE I16 above16(F16 a, F16 b) {
    const Registers x = {a}, y = {b};
    Answers z;
    for (int i = 0; i < 16 / kRegister; i++) z.part[i] = x.part[i] > y.part[i];
    return z.whole;
}
SAGE_INLINE F16 select16(I16 which, F16 a, F16 b) {
#if defined(__AVX512F__)
    return which ? a : b;
#else
    return (F16)((which & (I16)a) | (~which & (I16)b));
#endif
}
// Where one of the two is no number, the second.
SAGE_INLINE F16 max16(F16 a, F16 b) {
#if defined(__AVX512F__)
    return (F16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return select16(above16(a, b), a, b);
#endif
}
SAGE_INLINE F16 min16(F16 a, F16 b) {
#if defined(__AVX512F__)
    return (F16)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return select16(above16(b, a), a, b);
#endif
}
SAGE_INLINE F16 abs16(F16 a) { return (F16)((U16)a & 0x7fffffffu); }
SAGE_INLINE float from_bf16(uint16_t h) {
    const uint32_t bits = uint32_t(h) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
SAGE_INLINE F16 load_bf16(const uint16_t* p) {
    return (F16)(__builtin_convertvector(*reinterpret_cast<const H16u*>(p), U16) << 16);
}
SAGE_INLINE U16 round_bf16(F16 x) {
    const U16 bits = (U16)x;
    return (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
}
// Rounded to the nearest even. What is below the smallest normal number may become 0.
SAGE_INLINE void store_bf16(uint16_t* p, F16 x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    *reinterpret_cast<H16u*>(p) = __builtin_convertvector(round_bf16(x), H16u);
#endif
}
SAGE_INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

typedef float F8 __attribute__((vector_size(32)));
typedef float F4 __attribute__((vector_size(16)));
SAGE_INLINE F8 low(F16 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
SAGE_INLINE F8 high(F16 v) { return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }
SAGE_INLINE F4 low(F8 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
SAGE_INLINE F4 high(F8 v) { return __builtin_shufflevector(v, v, 4, 5, 6, 7); }
SAGE_INLINE float add_up(F16 v) {
    const F8 a = low(v) + high(v);
    const F4 b = low(a) + high(a);
    return (b[0] + b[2]) + (b[1] + b[3]);
}
SAGE_INLINE float largest(F16 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    const F8 l = low(v), h = high(v), a = l > h ? l : h;
    const F4 m = low(a), n = high(a), b = m > n ? m : n;
    const float x = b[0] > b[1] ? b[0] : b[1], y = b[2] > b[3] ? b[2] : b[3];
    return x > y ? x : y;
#endif
}

// exp of x <= 88; below -87 it is 0. Cody and Waite's reduction, then the Taylor series to degree 6 over half an octave.
SAGE_INLINE F16 exp16(F16 x) {
    const F16 kept = max16(x, splat(-87.0f));
#if defined(__AVX512F__)
    const F16 n = (F16)_mm512_roundscale_ps((__m512)(kept * 1.44269504088896341f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const F16 magic = splat(12582912.0f);
    const F16 n = (kept * 1.44269504088896341f + magic) - magic;
#endif
    const F16 r = (kept - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
    F16 p = splat(1.0f / 720.0f);
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    const F16 y = (F16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const I16 power = (__builtin_convertvector(n, I16) + 127) << 23;
    const F16 y = p * (F16)power;
#endif
    return select16(above16(splat(-87.0f), x), F16{}, y);
}

}  // namespace
}  // namespace sage
