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

constexpr Kernels kTable = {prepare, prepare_block, linear, rms_norm, silu_mul, attend, fold, keep_key, keep_value,
                            kSampling};

}  // namespace
}  // namespace sage
