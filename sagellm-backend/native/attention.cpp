#include "attention.h"

#include <math.h>
#include <string.h>

#include "team.h"

namespace sage {
namespace {

inline Partial partial_at(float* base, int index, int dim) {
    float* at = base + long(index) * partial_floats(dim);
    return {at[dim], at[dim + 1], at};
}

void finish(const Partial& p, int dim, float* out) {
    const float by = 1.0f / p.sum;
    for (int d = 0; d < dim; d++) out[d] = p.acc[d] * by;
}

}  // namespace

Plan plan_attention(const Shape& shape, const SageStep& step, int threads) {
    Plan plan;
    plan.split_of.assign(size_t(step.tokens), -1);
    plan.splits.assign(size_t(step.tokens), 0);
    const bool few = step.sequences * shape.kv_heads < 8 * threads;
    const int tile = larger(1, kMaxQueries / shape.queries());
    int token = 0;
    for (int s = 0; s < step.sequences; s++) {
        const int length = step.query_lens[s], context = step.context_lens[s];
        if (length == 1 && few && context - shape.first(context - 1) > kSplit) {
            const int first = shape.first(context - 1) / kSplit, last = ceil_div(context, kSplit);
            plan.split_of[size_t(token)] = plan.partials;
            plan.splits[size_t(token)] = last - first;
            for (int h = 0; h < shape.kv_heads; h++) {
                for (int p = first; p < last; p++) {
                    plan.pieces.push_back({s, token, 1, h, p, plan.partials});
                    plan.partials += shape.queries();
                }
            }
        } else {
            // The last queries see most: they go first.
            for (int at = (length - 1) / tile * tile; at >= 0 && length > 0; at -= tile) {
                for (int h = 0; h < shape.kv_heads; h++) {
                    plan.pieces.push_back({s, token + at, smaller(tile, length - at), h, -1, 0});
                }
            }
        }
        token += length;
    }
    return plan;
}

void attend_piece(const AttentionJob& job, const Piece& piece) {
    const Shape& shape = job.shape;
    const SageStep& step = *job.step;
    const int dim = shape.dim, group = shape.queries(), count = piece.count * group;
    Queries queries;
    queries.count = count;
    int begin = step.context_lens[piece.sequence], end = 0;
    for (int i = 0; i < piece.count; i++) {
        const int position = step.positions[piece.token + i];
        for (int g = 0; g < group; g++) {
            const int r = i * group + g;
            queries.q[r] = job.q + (long(piece.token + i) * shape.heads + piece.kv_head * group + g) * dim;
            queries.limit[r] = position + 1;
            queries.first[r] = shape.first(position);
        }
        begin = smaller(begin, shape.first(position));
        end = larger(end, position + 1);
    }
    const long head = step.head_stride * piece.kv_head * (step.kv_type == SAGE_TYPE_BF16 ? 2 : 4);
    Pages pages = {static_cast<const char*>(job.keys) + head,
                   static_cast<const char*>(job.values) + head,
                   job.tables + long(piece.sequence) * step.table_stride,
                   step.block_size,
                   step.kv_type,
                   dim};
    Partial now[kMaxQueries];
    alignas(64) float accs[kMaxQueries * kMaxHead];
    if (piece.split >= 0) {
        for (int r = 0; r < count; r++) now[r] = partial_at(job.partials, piece.partial + r, dim);
        job.k->attend(&queries, &pages, piece.split * kSplit, smaller(end, (piece.split + 1) * kSplit), now);
        for (int r = 0; r < count; r++) {
            now[r].acc[dim] = now[r].max;
            now[r].acc[dim + 1] = now[r].sum;
        }
        return;
    }
    Partial total[kMaxQueries];
    alignas(64) float totals[kMaxQueries * kMaxHead];
    for (int r = 0; r < count; r++) {
        now[r].acc = accs + r * dim;
        total[r] = {-INFINITY, 0.0f, totals + r * dim};
        memset(total[r].acc, 0, size_t(dim) * 4);
    }
    for (int at = begin / kSplit * kSplit; at < end; at += kSplit) {
        job.k->attend(&queries, &pages, at, smaller(end, at + kSplit), now);
        for (int r = 0; r < count; r++) job.k->merge(&total[r], &now[r], dim);
    }
    for (int r = 0; r < count; r++) {
        const int token = piece.token + r / group, h = piece.kv_head * group + r % group;
        finish(total[r], dim, job.out + (long(token) * shape.heads + h) * dim);
    }
}

void join_splits(const AttentionJob& job, int token, float* out) {
    const int first = job.plan->split_of[size_t(token)], splits = job.plan->splits[size_t(token)];
    if (first < 0) return;
    const int dim = job.shape.dim, group = job.shape.queries();
    alignas(64) float acc[kMaxHead];
    for (int h = 0; h < job.shape.heads; h++) {
        const int base = first + h / group * splits * group + h % group;
        Partial total = {-INFINITY, 0.0f, acc};
        memset(acc, 0, size_t(dim) * 4);
        for (int s = 0; s < splits; s++) {
            const Partial one = partial_at(job.partials, base + s * group, dim);
            job.k->merge(&total, &one, dim);
        }
        finish(total, dim, out + h * dim);
    }
}

}  // namespace sage
