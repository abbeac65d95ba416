// From a checkpoint's rows to interleaved groups of 16, and back for tables. Bits move; none is lost.
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "vec.h"

namespace sage {
namespace {

constexpr size_t kBytes[] = {18, 20, 34};  // a GGUF block of 32: Q4_0, Q4_1, Q8_0

void pack_quants(int kind, const uint8_t* row, int cols, uint8_t* group, int lane) {
    const Layout at(kind, cols);
    for (int b = 0; b < cols / kBlock; b++, row += kBytes[kind]) {
        memcpy(group + b * at.block + at.quants + lane * 2, row, 2);
        const uint8_t* q = row + 2;
        if (kind == SAGE_Q4_1) {
            memcpy(group + b * at.block + at.quants + 32 + lane * 2, q, 2);
            q += 2;
        }
        uint8_t* to = group + b * at.block + lane * 4;
        if (kind == SAGE_Q8_0) {
            // Kept unsigned, 128 up, as the dot product of bytes wants one side.
            for (int i = 0; i < 32; i++) to[(i / 4) * 64 + i % 4] = q[i] ^ 0x80;
        } else {
            for (int z = 0; z < 4; z++) memcpy(to + z * 64, q + z * 4, 4);
        }
    }
}

float half_to_float(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, 2);
    const int exponent = (h >> 10) & 31, fraction = h & 1023;
    const float magnitude = exponent == 0 ? ldexpf(float(fraction), -24) : ldexpf(float(fraction | 1024), exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

void pack_bf16(int source, const void* rows, int index, int cols, uint8_t* group, int lane) {
    uint16_t* to = reinterpret_cast<uint16_t*>(group);
    for (int k = 0; k < cols; k++) {
        const uint16_t h = source == SAGE_FROM_BF16 ? static_cast<const uint16_t*>(rows)[long(index) * cols + k]
                                                    : to_bf16(static_cast<const float*>(rows)[long(index) * cols + k]);
        to[(k / 2) * 32 + lane * 2 + k % 2] = h;
    }
}

}  // namespace
}  // namespace sage

using namespace sage;

size_t sage_matrix_bytes(int kind, int rows, int cols) { return Layout(kind, cols).group * size_t(groups_of(rows)); }

int sage_pack(const SageMatrix* m, uint8_t* data, int source, const void* rows, int first, int count) {
    if (m->kind != SAGE_BF16 && source != m->kind) return -1;
    if (m->kind == SAGE_BF16 && source != SAGE_FROM_BF16 && source != SAGE_FROM_F32) return -1;
    const Layout at(m->kind, m->cols);
    for (int i = 0; i < count; i++) {
        const int row = first + i;
        uint8_t* group = data + size_t(row / kLanes) * at.group;
        if (m->kind == SAGE_BF16) {
            pack_bf16(source, rows, i, m->cols, group, row % kLanes);
        } else {
            const size_t bytes = size_t(m->cols / kBlock) * kBytes[m->kind];
            pack_quants(m->kind, static_cast<const uint8_t*>(rows) + i * bytes, m->cols, group, row % kLanes);
        }
    }
    return 0;
}

void sage_embedding(const SageMatrix* m, const int32_t* ids, int tokens, float* out) {
    const Layout at(m->kind, m->cols);
    for (int t = 0; t < tokens; t++, out += m->cols) {
        const uint8_t* group = m->data + size_t(ids[t] / kLanes) * at.group;
        const int lane = ids[t] % kLanes;
        if (m->kind == SAGE_BF16) {
            const uint16_t* from = reinterpret_cast<const uint16_t*>(group);
            for (int k = 0; k < m->cols; k++) out[k] = from_bf16(from[(k / 2) * 32 + lane * 2 + k % 2]);
            continue;
        }
        for (int b = 0; b < m->cols / kBlock; b++) {
            const float d = half_to_float(group + b * at.block + at.quants + lane * 2);
            const float offset = m->kind == SAGE_Q4_1 ? half_to_float(group + b * at.block + at.quants + 32 + lane * 2) : 0.0f;
            const uint8_t* q = group + b * at.block + lane * 4;
            float* to = out + b * kBlock;
            for (int i = 0; i < 32; i++) {
                if (m->kind == SAGE_Q8_0) {
                    to[i] = d * float(int(q[(i / 4) * 64 + i % 4]) - 128);
                } else {
                    const int nibble = (q[(i % 16) / 4 * 64 + i % 4] >> (i < 16 ? 0 : 4)) & 15;
                    to[i] = m->kind == SAGE_Q4_1 ? d * float(nibble) + offset : d * float(nibble - 8);
                }
            }
        }
    }
}
