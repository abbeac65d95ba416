// From a checkpoint's rows to interleaved groups of 16, and back for tables. Bits move; none is lost.
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "vec.h"

namespace sage {
namespace {

constexpr int kMostSpan = 8;
constexpr uint32_t kOnes = 0x01010101;

// What one block of GGUF's holds: one row of a span.
struct Span {
    uint8_t scale[2], offset[2];  // float16
    uint8_t small[kMostSpan][2];  // as Layout::kSmall wants a lane's
    uint32_t quants[kMostSpan][8];  // of each block of 32 columns: 4 columns a word, a byte each
};

// -- GGUF's blocks ----------------------------------------------------------------------------------------------------

uint32_t word(const uint8_t* p, int index) {
    uint32_t w;
    memcpy(&w, p + 4 * index, 4);
    return w;
}

// Four bits to the lowest of four bytes.
uint32_t spread(uint32_t four) { return (four * 0x00204081u) & kOnes; }

// Bits `at` to `at + bits` of each byte.
uint32_t bits_of(uint32_t w, int at, int bits) { return (w >> at) & (kOnes * ((1u << bits) - 1)); }

void read_nibbles(const uint8_t* p, uint32_t (&quants)[8]) {
    for (int j = 0; j < 4; j++) {
        quants[j] = bits_of(word(p, j), 0, 4);
        quants[j + 4] = bits_of(word(p, j), 4, 4);
    }
}

void read_q4(const uint8_t* p, bool offset, bool fifth, Span* to) {
    memcpy(to->scale, p, 2);
    if (offset) memcpy(to->offset, p + 2, 2);
    p += offset ? 4 : 2;
    read_nibbles(p + (fifth ? 4 : 0), to->quants[0]);
    if (!fifth) return;
    for (int j = 0; j < 8; j++) to->quants[0][j] |= spread((word(p, 0) >> (4 * j)) & 15) << 4;
}

void read_q8_0(const uint8_t* p, Span* to) {
    memcpy(to->scale, p, 2);
    // Kept unsigned, 128 up, as the dot product of bytes wants one side.
    for (int j = 0; j < 8; j++) to->quants[0][j] = word(p + 2, j) ^ 0x80808080u;
}

void read_q2_k(const uint8_t* p, Span* to) {
    memcpy(to->small, p, 16);
    memcpy(to->scale, p + 80, 2);
    memcpy(to->offset, p + 82, 2);
    for (int b = 0; b < 8; b++) {
        for (int j = 0; j < 8; j++) to->quants[b][j] = bits_of(word(p + 16 + b / 4 * 32, j), 2 * (b % 4), 2);
    }
}

void read_q3_k(const uint8_t* p, Span* to) {
    memcpy(to->scale, p + 108, 2);
    const uint8_t* packed = p + 96;
    for (int i = 0; i < 16; i++) {
        // The low four bits of a scale are half of one of 8 bytes, the high two a quarter of one of the next 4.
        const int low = (packed[i % 8] >> (i / 8 * 4)) & 15, high = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
        to->small[i / 2][i % 2] = uint8_t((low | high << 4) - 32);
    }
    for (int b = 0; b < 8; b++) {
        for (int j = 0; j < 8; j++) {
            to->quants[b][j] = bits_of(word(p + 32 + b / 4 * 32, j), 2 * (b % 4), 2) | bits_of(word(p, j), b, 1) << 2;
        }
    }
}

void read_q4_k(const uint8_t* p, bool fifth, Span* to) {
    memcpy(to->scale, p, 2);
    memcpy(to->offset, p + 2, 2);
    const uint8_t* packed = p + 4;
    for (int b = 0; b < 4; b++) {
        // Six bits each; of the last four blocks, four in bytes 8 to 11 and two on top of the first four's.
        to->small[b][0] = packed[b] & 63;
        to->small[b][1] = packed[b + 4] & 63;
        to->small[b + 4][0] = uint8_t((packed[b + 8] & 15) | packed[b] >> 6 << 4);
        to->small[b + 4][1] = uint8_t(packed[b + 8] >> 4 | packed[b + 4] >> 6 << 4);
    }
    const uint8_t* nibbles = p + (fifth ? 48 : 16);
    for (int b = 0; b < 8; b++) {
        for (int j = 0; j < 8; j++) {
            to->quants[b][j] = bits_of(word(nibbles + b / 2 * 32, j), 4 * (b % 2), 4);
            if (fifth) to->quants[b][j] |= bits_of(word(p + 16, j), b, 1) << 4;
        }
    }
}

void read_q6_k(const uint8_t* p, Span* to) {
    memcpy(to->small, p + 192, 16);
    memcpy(to->scale, p + 208, 2);
    for (int b = 0; b < 8; b++) {
        const uint8_t* nibbles = p + b / 4 * 64 + b % 2 * 32;
        for (int j = 0; j < 8; j++) {
            to->quants[b][j] = bits_of(word(nibbles, j), b % 4 / 2 * 4, 4) | bits_of(word(p + 128 + b / 4 * 32, j), 2 * (b % 4), 2) << 4;
        }
    }
}

// Bytes of a block, by SageKind.
constexpr size_t kBytes[] = {0, 18, 20, 22, 24, 34, 84, 110, 144, 176, 210, 36};

void read_span(int kind, const uint8_t* p, Span* to) {
    switch (kind) {
        case SAGE_Q4_0: read_q4(p, false, false, to); break;
        case SAGE_Q4_1: read_q4(p, true, false, to); break;
        case SAGE_Q5_0: read_q4(p, false, true, to); break;
        case SAGE_Q5_1: read_q4(p, true, true, to); break;
        case SAGE_Q8_0: read_q8_0(p, to); break;
        case SAGE_Q2_K: read_q2_k(p, to); break;
        case SAGE_Q3_K: read_q3_k(p, to); break;
        case SAGE_Q4_K: read_q4_k(p, false, to); break;
        case SAGE_Q5_K: read_q4_k(p, true, to); break;
        default: read_q6_k(p, to); break;
    }
}

// -- one lane of a group ----------------------------------------------------------------------------------------------

// Where word j of a block's quants has its bits, of a plane of so many bits each: vector and lowest bit.
struct Place {
    int vector, bit;
    Place(int bits, int j)
        : vector(bits == 8 ? j : bits == 4 ? j % 4 : bits == 2 ? j / 4 : 0),
          bit(bits == 8 ? 0 : bits == 4 ? j / 4 * 4 : bits == 2 ? j % 4 * 2 : j) {}
};

void store_plane(const uint32_t (&quants)[8], int at, int bits, uint8_t* lane) {
    uint32_t words[8] = {};
    for (int j = 0; j < 8; j++) {
        const Place place(bits, j);
        words[place.vector] |= bits_of(quants[j], at, bits) << place.bit;
    }
    for (int v = 0; v < bits; v++) memcpy(lane + v * 64, words + v, 4);
}

void load_plane(const uint8_t* lane, int at, int bits, uint32_t (&quants)[8]) {
    for (int j = 0; j < 8; j++) {
        const Place place(bits, j);
        quants[j] |= bits_of(word(lane + place.vector * 64, 0), place.bit, bits) << at;
    }
}

void store_span(int kind, const Layout& at, const Span& from, uint8_t* span, int lane) {
    const Format& f = kFormats[kind];
    memcpy(span + lane * 2, from.scale, 2);
    if (f.offsets) memcpy(span + 32 + lane * 2, from.offset, 2);
    for (int b = 0; b < f.span; b++) {
        uint8_t* small = span + at.small + b * Layout::kSmall + lane;
        if (f.span > 1) small[0] = from.small[b][0], small[kLanes] = from.small[b][1];
        uint8_t* to = span + at.quants + b * at.block + lane * 4;
        store_plane(from.quants[b], 0, f.low, to);
        if (f.high > 0) store_plane(from.quants[b], f.low, f.high, to + f.low * 64);
    }
}

float half_to_float(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, 2);
    const int exponent = (h >> 10) & 31, fraction = h & 1023;
    const float magnitude = exponent == 0 ? ldexpf(float(fraction), -24) : ldexpf(float(fraction | 1024), exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

// The elements of a span's row.
void expand_span(int kind, const Layout& at, const uint8_t* span, int lane, float* out) {
    const Format& f = kFormats[kind];
    const float d = half_to_float(span + lane * 2), m = f.offsets ? half_to_float(span + 32 + lane * 2) : 0.0f;
    for (int b = 0; b < f.span; b++) {
        const uint8_t* from = span + at.quants + b * at.block + lane * 4;
        uint32_t quants[8] = {};
        load_plane(from, 0, f.low, quants);
        if (f.high > 0) load_plane(from + f.low * 64, f.low, f.high, quants);
        const uint8_t* small = span + at.small + b * Layout::kSmall + lane;
        for (int i = 0; i < kBlock; i++) {
            float scale = d, offset = m;
            if (f.span > 1) {
                const uint8_t own = small[f.parts == 2 ? i / 16 * kLanes : 0];
                if (f.parts == 2 && f.offsets) {
                    scale = d * float(own & 15), offset = -m * float(own >> 4);
                } else {
                    scale = d * float(int8_t(own));
                    if (f.offsets) offset = -m * float(small[kLanes]);
                }
            }
            out[b * kBlock + i] = scale * float(int((quants[i / 4] >> (i % 4 * 8)) & 255) - f.zero) + offset;
        }
    }
}

void pack_bf16(int type, const void* rows, int index, int cols, uint8_t* group, int lane) {
    uint16_t* to = reinterpret_cast<uint16_t*>(group);
    for (int k = 0; k < cols; k++) {
        const uint16_t h = type == SAGE_TYPE_BF16 ? static_cast<const uint16_t*>(rows)[long(index) * cols + k]
                                                  : to_bf16(static_cast<const float*>(rows)[long(index) * cols + k]);
        to[(k / 2) * 32 + lane * 2 + k % 2] = h;
    }
}

void pack_f8(const uint8_t* from, const Layout& at, uint8_t* span, int lane) {
    memcpy(span + lane * sizeof(float), from, sizeof(float));
    for (int k = 0; k < kBlock / 2; k++) memcpy(span + at.quants + k * 32 + lane * 2, from + sizeof(float) + 2 * k, 2);
}

float f8_to_float(uint8_t code) {
    const int exponent = (code >> 3) & 15, fraction = code & 7;
    const float magnitude = exponent == 0 ? ldexpf(float(fraction), -9) : ldexpf(float(fraction | 8), exponent - 10);
    return code & 0x80 ? -magnitude : magnitude;
}

void expand_f8(const Layout& at, const uint8_t* span, int lane, float* out) {
    float scale;
    memcpy(&scale, span + lane * sizeof(float), sizeof scale);
    for (int i = 0; i < kBlock; i++) out[i] = scale * f8_to_float(span[at.quants + i / 2 * 32 + lane * 2 + i % 2]);
}

void embed(const SageSegment& s, int cols, int row, float* out) {
    const Layout at(s.kind, cols);
    const uint8_t* group = s.data + size_t(row / kLanes) * at.group;
    const int lane = row % kLanes;
    if (s.kind == SAGE_BF16) {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(group);
        for (int k = 0; k < cols; k++) out[k] = from_bf16(from[(k / 2) * 32 + lane * 2 + k % 2]);
        return;
    }
    const int width = kFormats[s.kind].span * kBlock;
    if (s.kind == SAGE_F8) {
        for (int i = 0; i < cols / width; i++) expand_f8(at, group + i * at.span, lane, out + i * width);
        return;
    }
    for (int i = 0; i < cols / width; i++) expand_span(s.kind, at, group + i * at.span, lane, out + i * width);
}

}  // namespace
}  // namespace sage

using namespace sage;

size_t sage_packed_bytes(int kind, int rows, int cols) { return Layout(kind, cols).group * size_t(groups_of(rows)); }

void sage_pack(int kind, int cols, uint8_t* data, int type, const void* rows, int first, int count) {
    const Layout at(kind, cols);
    const uint8_t* from = static_cast<const uint8_t*>(rows);
    for (int i = 0; i < count; i++) {
        const int lane = (first + i) % kLanes;
        uint8_t* group = data + size_t((first + i) / kLanes) * at.group;
        if (kind == SAGE_BF16) {
            pack_bf16(type, rows, i, cols, group, lane);
            continue;
        }
        Span span{};
        for (int b = 0; b < cols / (kFormats[kind].span * kBlock); b++, from += kBytes[kind]) {
            if (kind == SAGE_F8) {
                pack_f8(from, at, group + b * at.span, lane);
                continue;
            }
            read_span(kind, from, &span);
            store_span(kind, at, span, group + b * at.span, lane);
        }
    }
}

void sage_embedding(const SageMatrix* m, const int32_t* ids, int tokens, float* out) {
    for (int t = 0; t < tokens; t++, out += m->cols) {
        int row = ids[t];
        const SageSegment* s = m->segment;
        for (; row >= s->rows; s++) row -= s->rows;
        embed(*s, m->cols, row, out);
    }
}
