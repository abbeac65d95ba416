// A step's attention over the paged cache, cut into pieces that are dealt out.
#pragma once

#include <vector>

#include "work.h"

namespace sage {

// What is dealt out of a step's attention: queries of one sequence and key head, over all they see or over one split.
struct Piece {
    int sequence, token, count;  // first token among the step's, and how many
    int kv_head;
    int head, heads;  // of the query heads that share the key head, the first and how many: all that one call takes
    int split;    // -1 for all
    int partial;  // where its results begin among the partial ones, in units of a key head's queries
};

struct Plan {
    std::vector<Piece> pieces;
    std::vector<int> split_of;  // of each token: index of its first partial result, or -1
    std::vector<int> splits;    // of each token: partial results of each key head
    int partials = 0;
};

// Tokens of a step that follow one another, and the row of the first among those that are looked at.
struct Span {
    int from, to;
    int row;
};

struct Shape {
    int heads, kv_heads, dim, value_dim, window;
    float softcap;
    int queries() const { return heads / kv_heads; }
    int first(int position) const { return window == 0 ? 0 : larger(0, position + 1 - window); }
};

struct AttentionJob {
    const Kernels* k;
    Shape shape;
    const SageStep* step;
    int group, layer;
    const float* q;  // [T, Hq, D], scaled
    float* out;      // [T, Hq, Dv]
    const Plan* plan;
    float* partials;  // sage::partial_floats of each
};

// Cut a step, or what of it `tokens` names in ascending order; which pieces there are depends on the other sequences,
// what comes out of them does not.
Plan plan_attention(const Shape& shape, const SageStep& step, const std::vector<Span>& tokens, int threads);

// Floats of one key head's partial results of one token.
size_t partial_floats(const Shape& shape);

Pages pages_of(const AttentionJob& job, int sequence, int kv_head, int end);

void attend_piece(const AttentionJob& job, int number);

// Join what pieces of one token left, into `out` [Hq, Dv].
void join_splits(const AttentionJob& job, int token, float* out);

// Put a token's key (or value) of one head where the step's tables say.
void keep(const AttentionJob& job, int sequence, int position, int kv_head, bool value, const float* row);

}  // namespace sage
