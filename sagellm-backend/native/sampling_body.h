// Passes over one row of scores, by one instruction set's vectors.
#pragma once

#include <math.h>

#include "kernels.h"

namespace sage {
namespace {

constexpr int kOfTile = kScoreTile / kRegister;  // vectors of a tile
typedef float Unaligned __attribute__((vector_size(sizeof(Register)), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(sizeof(Register))));
typedef uint16_t Halves __attribute__((vector_size(sizeof(Register) / 2), aligned(2), may_alias));
typedef decltype(Register{} > Register{}) Answer;

SAGE_INLINE Register load_register(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
SAGE_INLINE Register max_of(Register a, Register b) { return a > b ? a : b; }
SAGE_INLINE bool any(Answer answer) {
    uint64_t words[sizeof(Answer) / 8], bits = 0;
    memcpy(words, &answer, sizeof(answer));
    for (const uint64_t word : words) bits |= word;
    return bits != 0;
}

struct Float32Scores {
    const float* at;
    explicit Float32Scores(const void* scores) : at(static_cast<const float*>(scores)) {}
    Register vector(int i) const { return load_register(at + i); }
    float operator[](int i) const { return at[i]; }
};

struct Bfloat16Scores {
    const uint16_t* at;
    explicit Bfloat16Scores(const void* scores) : at(static_cast<const uint16_t*>(scores)) {}
    Register vector(int i) const {
        return (Register)(__builtin_convertvector(*reinterpret_cast<const Halves*>(at + i), Words) << 16);
    }
    float operator[](int i) const { return from_bf16(at[i]); }
};

template <class Scores>
float largest_of(Scores scores, int n) {
    // Four chains: one comparison need not wait for the one before it.
    constexpr int kStride = 4 * kRegister;
    Register best[4];
    Answer wrong{};
    for (Register& b : best) b = Register{} - INFINITY;
    int i = 0;
    for (; i + kStride <= n; i += kStride) {
        for (int c = 0; c < 4; c++) {
            const Register x = scores.vector(i + c * kRegister);
            wrong |= x != x;
            best[c] = max_of(x, best[c]);
        }
    }
    const Register all = max_of(max_of(best[0], best[1]), max_of(best[2], best[3]));
    float most = -INFINITY;
    bool number = !any(wrong);
    for (int lane = 0; lane < kRegister; lane++) most = all[lane] > most ? all[lane] : most;
    for (; i < n; i++) {
        const float x = scores[i];
        number &= x == x;
        most = x > most ? x : most;
    }
    return number ? most : NAN;
}

float largest_score(int type, const void* scores, int n) {
    return type == SAGE_TYPE_BF16 ? largest_of(Bfloat16Scores(scores), n) : largest_of(Float32Scores(scores), n);
}

template <class Scores>
int argmax_of(Scores scores, int n) {
    const float most = largest_of(scores, n);
    if (most != most) return -1;
    // It is there: read again, from the cache, up to where.
    constexpr int kStride = 4 * kRegister;
    int i = 0;
    for (; i + kStride <= n; i += kStride) {
        Answer found{};
        for (int c = 0; c < 4; c++) found |= scores.vector(i + c * kRegister) == Register{} + most;
        if (any(found)) break;
    }
    while (scores[i] != most) i++;
    return i;
}

int argmax(int type, const void* scores, int n) {
    return type == SAGE_TYPE_BF16 ? argmax_of(Bfloat16Scores(scores), n) : argmax_of(Float32Scores(scores), n);
}

template <class Scores>
void relate_to(Scores scores, int n, float most, float temperature, float* related) {
    int i = 0;
    // A quotient, not a product with the inverse: scores that are equal or not stay so whoever computes them.
    for (; i + kRegister <= n; i += kRegister) {
        *reinterpret_cast<Unaligned*>(related + i) = (scores.vector(i) - most) / temperature;
    }
    for (; i < n; i++) related[i] = (scores[i] - most) / temperature;
    for (; i % kScoreTile != 0; i++) related[i] = -INFINITY;
}

void relate(int type, const void* scores, int n, float most, float temperature, float* related) {
    if (type == SAGE_TYPE_BF16) return relate_to(Bfloat16Scores(scores), n, most, temperature, related);
    relate_to(Float32Scores(scores), n, most, temperature, related);
}

double weigh(const float* related, int tiles, float* weights, float* sums) {
    double total = 0.0;
    for (int tile = 0; tile < tiles; tile++, related += kScoreTile, weights += kScoreTile) {
        F16 w[4];
        for (int c = 0; c < 4; c++) {
            w[c] = exp16(load(related + 16 * c));
            store(weights + 16 * c, w[c]);
        }
        sums[tile] = add_up((w[0] + w[1]) + (w[2] + w[3]));
        total += double(sums[tile]);
    }
    return total;
}

void sound(const float* related, const float* weights, int tiles, const float* levels, float* held) {
    Register sums[kSounded] = {}, bounds[kSounded];
    for (int level = 0; level < kSounded; level++) bounds[level] = Register{} + levels[level];
    for (int i = 0; i < tiles * kScoreTile; i += kRegister) {
        const Register x = load_register(related + i), one = Register{} + 1.0f;
        const Register share = weights != nullptr ? load_register(weights + i) : one;
        for (int level = 0; level < kSounded; level++) {
            sums[level] += x >= bounds[level] ? share : Register{};
        }
    }
    for (int level = 0; level < kSounded; level++) {
        held[level] = 0.0f;
        for (int lane = 0; lane < kRegister; lane++) held[level] += sums[level][lane];
    }
}

int collect(const float* related, int n, float bound, float* values, int32_t* ids) {
    int count = 0, i = 0;
    const auto take = [&](int stop) {
        for (; i < stop; i++) {
            // Written whether it stays or not: which is hard to predict.
            values[count] = related[i];
            ids[count] = i;
            count += related[i] >= bound;
        }
    };
    while (i + kScoreTile <= n) {
        Answer found{};
        for (int c = 0; c < kOfTile; c++) found |= load_register(related + i + c * kRegister) >= Register{} + bound;
        if (any(found)) {
            take(i + kScoreTile);
        } else {
            i += kScoreTile;
        }
    }
    take(n);
    return count;
}

int count_above(const float* related, int tiles, float bound) {
    Answer count{};
    for (int i = 0; i < tiles * kScoreTile; i += kRegister) count -= load_register(related + i) > Register{} + bound;
    int total = 0;
    for (int lane = 0; lane < kRegister; lane++) total += count[lane];
    return total;
}

constexpr SamplingKernels kSampling = {argmax, largest_score, relate, weigh, sound, collect, count_above};

}  // namespace
}  // namespace sage
