#include "attention.h"

#include <math.h>
#include <string.h>

#include "team.h"
#include "vec.h"

namespace sage {
namespace {

inline int padded(int count) { return ceil_div(count, kLanes) * kLanes; }

// Results laid out in memory: largest scores, sums, then what was accumulated.
inline Sums sums_at(float* base, int count) { return {base, base + padded(count), base + 2 * padded(count)}; }

void finish(const Kernels& k, const Sums& sums, int r, int dim, float* out) {
    k.scaled(sums.acc + long(r) * dim, 1.0f / sums.sum[r], dim, out);
}

}  // namespace

Plan plan_attention(const Shape& shape, const SageStep& step, const std::vector<Span>& tokens, int threads) {
    Plan plan;
    plan.split_of.assign(size_t(step.tokens), -1);
    plan.splits.assign(size_t(step.tokens), 0);
    const Pages pages = {Tile(step.kv_type, shape.dim, shape.value_dim), nullptr, 0, nullptr, step.block_size, 0};
    const int heads = smaller(shape.queries(), kMaxQueries);
    const bool few = step.sequences * shape.kv_heads < 8 * threads && heads == shape.queries();
    const int at_once = kMaxQueries / heads;
    const auto cut = [&](int s, int token, int length, int last) {
        const int first_split = pages.split_of(shape.first(last)), splits = pages.split_of(last) + 1 - first_split;
        if (length == 1 && few && splits > 1) {
            plan.split_of[size_t(token)] = plan.partials;
            plan.splits[size_t(token)] = splits;
            for (int h = 0; h < shape.kv_heads; h++) {
                for (int p = 0; p < splits; p++) plan.pieces.push_back({s, token, 1, h, 0, heads, first_split + p, plan.partials++});
            }
        } else {
            // The last queries see most: they go first.
            for (int at = (length - 1) / at_once * at_once; at >= 0 && length > 0; at -= at_once) {
                for (int h = 0; h < shape.kv_heads; h++) {
                    for (int first = 0; first < shape.queries(); first += heads) {
                        const int some = smaller(heads, shape.queries() - first);
                        plan.pieces.push_back({s, token + at, smaller(at_once, length - at), h, first, some, -1, 0});
                    }
                }
            }
        }
    };
    size_t span = 0;
    int end = 0;  // of the sequence's tokens
    for (int s = 0; s < step.sequences; s++) {
        const int begin = end;
        end += step.query_lens[s];
        for (; span < tokens.size() && tokens[span].from < end; span++) {
            const int from = larger(begin, tokens[span].from), to = smaller(end, tokens[span].to);
            cut(s, from, to - from, step.context_lens[s] - 1 - (end - to));
            if (tokens[span].to > end) break;
        }
    }
    return plan;
}

size_t partial_floats(const Shape& shape) {
    return size_t(2 * padded(shape.queries())) + up64(size_t(shape.queries()) * shape.value_dim);
}

Pages pages_of(const AttentionJob& job, int sequence, int kv_head, int end) {
    const SageStep& step = *job.step;
    const Tile tile(step.kv_type, job.shape.dim, job.shape.value_dim);
    Pages pages = {tile, nullptr, step.block_stride, step.tables[job.group] + long(sequence) * step.table_stride, step.block_size, end};
    pages.base = step.pool + step.layer_offset[job.layer] + tile.bytes * size_t(pages.block_tiles()) * size_t(kv_head);
    return pages;
}

void keep(const AttentionJob& job, int sequence, int position, int kv_head, bool value, const float* row) {
    const Pages pages = pages_of(job, sequence, kv_head, position + 1);
    const int inside = position % pages.block_size;
    uint8_t* tile = const_cast<uint8_t*>(pages.at(position / pages.block_size, inside / kTile));
    (value ? job.k->keep_value : job.k->keep_key)(&pages.tile, tile, inside % kTile, row);
}

void attend_piece(const AttentionJob& job, int number) {
    const Piece& piece = job.plan->pieces[size_t(number)];
    const Shape& shape = job.shape;
    const int dim = shape.dim, group = piece.heads, count = piece.count * group;
    const int first_head = piece.kv_head * shape.queries() + piece.head;
    Queries queries;
    queries.count = count;
    queries.softcap = shape.softcap;
    for (int i = 0; i < piece.count; i++) {
        const int position = job.step->positions[piece.token + i];
        for (int g = 0; g < group; g++) {
            const int r = i * group + g;
            queries.q[r] = job.q + (long(piece.token + i) * shape.heads + first_head + g) * dim;
            queries.limit[r] = position + 1;
            queries.first[r] = shape.first(position);
        }
    }
    // The first of the queries sees from the earliest token on, the last up to the latest.
    const int begin = queries.first[0], end = queries.limit[count - 1];
    const Pages pages = pages_of(job, piece.sequence, piece.kv_head, end);
    const bool part = piece.split >= 0;
    const int first = part ? piece.split : pages.split_of(begin);
    const int last = part ? piece.split + 1 : pages.split_of(end - 1) + 1;
    alignas(64) float memory[2 * kMaxQueries + kMaxQueries * kMaxHead];
    Sums sums = sums_at(part ? job.partials + size_t(piece.partial) * partial_floats(shape) : memory, count);
    job.k->attend(&queries, &pages, first, last, &sums);
    if (part) return;
    for (int r = 0; r < count; r++) {
        const int token = piece.token + r / group, h = first_head + r % group;
        finish(*job.k, sums, r, shape.value_dim, job.out + (long(token) * shape.heads + h) * shape.value_dim);
    }
}

void join_splits(const AttentionJob& job, int token, float* out) {
    const int first = job.plan->split_of[size_t(token)], splits = job.plan->splits[size_t(token)];
    const int dim = job.shape.value_dim, group = job.shape.queries();
    alignas(64) float memory[2 * kMaxQueries + kMaxQueries * kMaxHead];
    for (int h = 0; h < job.shape.kv_heads; h++) {
        Sums total = sums_at(memory, group);
        for (int r = 0; r < padded(group); r++) {
            total.max[r] = -INFINITY;
            total.sum[r] = 0.0f;
        }
        memset(total.acc, 0, size_t(group) * dim * sizeof(float));
        for (int s = 0; s < splits; s++) {
            const Sums one = sums_at(job.partials + size_t(first + h * splits + s) * partial_floats(job.shape), group);
            job.k->fold(group, dim, &total, &one);
        }
        for (int g = 0; g < group; g++) finish(*job.k, total, g, dim, out + long(h * group + g) * dim);
    }
}

namespace {

// -- one layer's attention as an operation of its own -----------------------------------------------------------------

struct OperationJob {
    AttentionJob attention;
    const SageAttention* shape;
    const void *q, *k, *v;
    void* out;
    float* scaled;           // [T, Hq, D]
    const int* sequence_of;  // [T]
    Phases::Counter* counters;
};

void read_row(int type, const void* from, long at, int size, float* to) {
    if (type == SAGE_TYPE_F32) {
        memcpy(to, static_cast<const float*>(from) + at, size_t(size) * sizeof(float));
    } else {
        for (int i = 0; i < size; i++) to[i] = from_bf16(static_cast<const uint16_t*>(from)[at + i]);
    }
}

void write_row(int type, const float* from, int size, void* to, long at) {
    if (type == SAGE_TYPE_F32) {
        memcpy(static_cast<float*>(to) + at, from, size_t(size) * sizeof(float));
    } else {
        for (int i = 0; i < size; i++) static_cast<uint16_t*>(to)[at + i] = to_bf16(from[i]);
    }
}

void operation_body(void* context, int rank, int size) {
    const OperationJob& job = *static_cast<OperationJob*>(context);
    const SageAttention& shape = *job.shape;
    const SageStep& step = *job.attention.step;
    const int pieces = ceil_div(step.tokens, kPrepareRows);
    Phases phases(job.counters, rank, size);
    const auto rows_of = [&](int i, const auto& work) {
        for (int t = i * kPrepareRows; t < smaller(step.tokens, (i + 1) * kPrepareRows); t++) work(t);
    };
    phases.run(pieces, [&](int i) {
        alignas(64) float row[kMaxHead];
        rows_of(i, [&](int t) {
            float* q = job.scaled + long(t) * shape.heads * shape.head_dim;
            read_row(shape.type, job.q, long(t) * shape.heads * shape.head_dim, shape.heads * shape.head_dim, q);
            job.attention.k->scaled(q, shape.scale, shape.heads * shape.head_dim, q);
            for (int h = 0; h < shape.kv_heads; h++) {
                const long head = long(t) * shape.kv_heads + h;
                read_row(shape.type, job.k, head * shape.head_dim, shape.head_dim, row);
                keep(job.attention, job.sequence_of[t], step.positions[t], h, false, row);
                read_row(shape.type, job.v, head * shape.value_dim, shape.value_dim, row);
                keep(job.attention, job.sequence_of[t], step.positions[t], h, true, row);
            }
        });
    });
    phases.run(int(job.attention.plan->pieces.size()), [&](int i) { attend_piece(job.attention, i); });
    const int width = shape.heads * shape.value_dim;
    phases.run(pieces, [&](int i) {
        rows_of(i, [&](int t) {
            float* row = job.attention.out + long(t) * width;
            if (job.attention.plan->split_of[size_t(t)] >= 0) join_splits(job.attention, t, row);
            write_row(shape.type, row, width, job.out, long(t) * width);
        });
    });
}

}  // namespace
}  // namespace sage

using namespace sage;

size_t sage_tile_bytes(int type, int dim, int value_dim) { return Tile(type, dim, value_dim).bytes; }

int sage_attention(int level, int threads, const SageAttention* shape, const SageStep* step, const void* q, const void* k,
                   const void* v, void* out) {
    if (step->tokens == 0) return 0;
    const Shape cut = {shape->heads, shape->kv_heads, shape->head_dim, shape->value_dim, shape->window, shape->softcap};
    const Plan plan = plan_attention(cut, *step, {{0, step->tokens, 0}}, threads);
    std::vector<int> sequence_of;
    for (int s = 0; s < step->sequences; s++) sequence_of.insert(sequence_of.end(), size_t(step->query_lens[s]), s);
    OperationJob job{{&kernels(level), cut, step, shape->group, shape->layer, nullptr, nullptr, &plan, nullptr},
                     shape, q, k, v, out, nullptr, sequence_of.data(), nullptr};
    Arena arena;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && !arena.allocate()) return -1;
        job.counters = arena.take<Phases::Counter>(Phases::counters(3, threads));
        job.scaled = arena.take<float>(size_t(step->tokens) * shape->heads * shape->head_dim);
        job.attention.out = arena.take<float>(size_t(step->tokens) * shape->heads * shape->value_dim);
        job.attention.partials = arena.take<float>(size_t(plan.partials) * partial_floats(cut));
    }
    job.attention.q = job.scaled;
    memset(static_cast<void*>(job.counters), 0, Phases::counters(3, threads) * sizeof(Phases::Counter));
    on_team(threads, operation_body, &job);
    return 0;
}
