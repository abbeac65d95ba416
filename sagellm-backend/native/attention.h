// A step's attention over the paged cache, cut into pieces that are dealt out.
#pragma once

#include <vector>

#include "work.h"

namespace sage {

// What is dealt out of a step's attention: queries of one sequence and key head, over all they see or over one split.
struct Piece {
    int sequence, token, count;  // first token among the step's, and how many
    int kv_head;
    int split;    // -1 for all
    int partial;  // where its partial results begin, in units of the group's queries
};

struct Plan {
    std::vector<Piece> pieces;
    std::vector<int> split_of;  // of each token: index of its first partial, or -1
    std::vector<int> splits;    // of each token: partials of each key head
    int partials = 0;
};

struct Shape {
    int heads, kv_heads, dim, window;
    int queries() const { return heads / kv_heads; }
    int first(int position) const { return window == 0 ? 0 : larger(0, position + 1 - window); }
};

// Cut a step; which pieces there are depends on the other sequences, what comes out of them does not.
Plan plan_attention(const Shape& shape, const SageStep& step, int threads);

struct AttentionJob {
    const Kernels* k;
    Shape shape;
    const SageStep* step;
    const int32_t* tables;
    const void* keys;
    const void* values;
    const float* q;  // [T, Hq, D], scaled
    float* out;      // [T, Hq, D]
    const Plan* plan;
    float* partials;  // of each, max, sum and D values, padded to 16
};

inline int partial_floats(int dim) { return dim + 16; }

void attend_piece(const AttentionJob& job, const Piece& piece);

// Join what pieces of one token left, into `out` [Hq, D]. Splits are folded in order, as a piece over all of them does.
void join_splits(const AttentionJob& job, int token, float* out);

}  // namespace sage
