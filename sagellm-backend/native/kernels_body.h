// The kernels over one instruction set's primitives. Included once by each, inside its own translation unit.
#pragma once

#include "attention_body.h"
#include "linear_body.h"
#include "sampling_body.h"

namespace sage {
namespace {

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

void rotate(float* v, const float* trig, int rotary, int interleaved) {
    const int half = rotary / 2;
    const float *cosine = trig, *sine = trig + half;
    if (interleaved) {
        for (int i = 0; i < half; i++) {
            const float a = v[2 * i], b = v[2 * i + 1];
            v[2 * i] = a * cosine[i] - b * sine[i];
            v[2 * i + 1] = b * cosine[i] + a * sine[i];
        }
        return;
    }
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const F16 a = load(v + i), b = load(v + half + i), c = load(cosine + i), s = load(sine + i);
        store(v + i, a * c - b * s);
        store(v + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        const float a = v[i], b = v[i + half];
        v[i] = a * cosine[i] - b * sine[i];
        v[i + half] = b * cosine[i] + a * sine[i];
    }
}

void add(float* to, const float* from, int n) {
    for (int i = 0; i < n; i += kLanes) store(to + i, load(to + i) + load(from + i));
}

void scaled(const float* from, float by, int n, float* to) {
    for (int i = 0; i < n; i += kLanes) store(to + i, load(from + i) * by);
}

constexpr Kernels kTable = {prepare, prepare_block, linear, rms_norm, silu_mul, rotate, add, scaled, attend, fold,
                            keep_key, keep_value, kSampling};

}  // namespace
}  // namespace sage
