// A decoder's whole step in one parallel region: embedding, layers, last norm.
#include <math.h>
#include <string.h>

#include <vector>

#include "attention.h"
#include "team.h"
#include "vec.h"

namespace sage {
namespace {

struct Buffers {
    float *x, *q, *attended, *partials, *trig;
    Rows of_hidden, of_attended, of_inner;
};

// Some of a step's tokens, cut for the phases.
struct Part {
    std::vector<Span> spans, tiles, pieces;
    std::vector<Plan> plans;  // of each window
    int count = 0;

    void add(int from, int to) {
        spans.push_back({from, to, count});
        for (int t = from; t < to; t += kTileRows) tiles.push_back({t, smaller(to, t + kTileRows), count + t - from});
        for (int t = from; t < to; t += kPrepareRows) pieces.push_back({t, smaller(to, t + kPrepareRows), count + t - from});
        count += to - from;
    }
};

Part all_of(const SageStep& step) {
    Part part;
    part.add(0, step.tokens);
    return part;
}

Part read_of(const SageStep& step) {
    Part part;
    for (int i = 0, next; i < step.reads; i = next) {
        next = i + 1;
        while (next < step.reads && step.read[next] == step.read[next - 1] + 1) next++;
        part.add(step.read[i], step.read[next - 1] + 1);
    }
    return part;
}

struct StepJob {
    const Kernels* k;
    const SageDecoder* d;
    const SageStep* step;
    float* out;
    Phases::Counter* counters;
    const int* sequence_of;  // [T]
    Buffers b;
    Buffers* own;  // of each thread: rows for few tokens
    const Part *all, *read;  // all tokens, and those whose hidden states are wanted: the last layer goes on with these
    const int* plan_of;      // of each layer, which of a part's plans is its own
};

void step_body(void* context, int rank, int size) {
    const StepJob& job = *static_cast<StepJob*>(context);
    const SageDecoder& d = *job.d;
    const SageStep& step = *job.step;
    const Kernels& k = *job.k;
    const int tokens = step.tokens, hidden = d.hidden, inner = d.inner, dim = d.head_dim, width = d.heads * dim;
    const bool own = tokens <= kPrivateRows;
    Buffers b = job.b;
    if (own) {
        b.of_hidden = job.own[rank].of_hidden;
        b.of_attended = job.own[rank].of_attended;
    }
    Phases phases(job.counters, rank, size);
    alignas(64) float buffer[2 * kTileRows * 4 * kLanes];
    std::vector<float> normed(size_t(larger(hidden, width)));

    const auto each = [](const Span& span, const auto& work) {
        for (int t = span.from; t < span.to; t++) work(t);
    };
    // Prepare rows for a matrix: by everyone for itself when they are few and work is claimed, else as a phase.
    bool ready = false;
    const auto prepare_phase = [&](const Part& part, const auto& one) {
        ready = !own;
        if (!own) phases.run(int(part.pieces.size()), [&](int i) { each(part.pieces[size_t(i)], one); });
    };
    const auto before_work = [&](const Part& part, const auto& one) {
        if (ready) return;
        for (const Span& span : part.spans) each(span, one);
        ready = true;
    };

    const Part& all = *job.all;
    const int all_tiles = int(all.tiles.size());
    phases.run(int(all.pieces.size()), [&](int i) {
        each(all.pieces[size_t(i)], [&](int t) {
            sage_embedding(d.embedding, step.ids + t, 1, b.x + long(t) * hidden);
            float* trig = b.trig + long(t) * d.rotary_dim;
            for (int j = 0; j < d.rotary_dim / 2; j++) {
                const float angle = float(step.positions[t]) * d.inv_freq[j];
                trig[j] = cosf(angle) * d.attention_factor;
                trig[d.rotary_dim / 2 + j] = sinf(angle) * d.attention_factor;
            }
        });
    });

    for (int number = 0; number < d.layers; number++) {
        const SageLayer& layer = d.layer[number];
        // What nobody reads the last layer leaves out, but for its keys and values.
        const Part& part = number + 1 < d.layers ? all : *job.read;
        const int tiles = int(part.tiles.size());
        const auto norm_rows = [&](const float* weight, int kind) {
            return [&, weight, kind](int t) {
                k.rms_norm(b.x + long(t) * hidden, weight, hidden, layer.eps, normed.data());
                k.prepare(kind, normed.data(), hidden, t, t + 1, &b.of_hidden);
            };
        };

        // Queries, keys and values, head by head: normalised, turned, and put where attention reads them.
        const auto for_qkv = norm_rows(layer.input_norm, layer.qkv->kind);
        prepare_phase(all, for_qkv);
        const int head_groups = dim / kLanes, queries = d.heads * tiles;
        const Plan& plan = part.plans[size_t(job.plan_of[number])];
        const AttentionJob attention = {&k,
                                        {d.heads, d.kv_heads, dim, dim, layer.window, 0.0f},
                                        &step,
                                        layer.group,
                                        number,
                                        b.q,
                                        b.attended,
                                        &plan,
                                        b.partials};
        phases.run(queries + 2 * d.kv_heads * all_tiles, [&](int i) {
            before_work(all, for_qkv);
            const int head = i < queries ? i / tiles : d.heads + (i - queries) / all_tiles;
            const auto [t0, t1, row] = i < queries ? part.tiles[size_t(i % tiles)] : all.tiles[size_t((i - queries) % all_tiles)];
            for (int from = t0; from < t1; from += smaller(kTileRows, 2 * kTileRows * 64 / dim)) {
                const int to = smaller(t1, from + smaller(kTileRows, 2 * kTileRows * 64 / dim));
                k.linear(layer.qkv, head * head_groups, (head + 1) * head_groups, &b.of_hidden, from, to, buffer, dim);
                for (int t = from; t < to; t++) {
                    float* v = buffer + long(t - from) * dim;
                    const bool query = head < d.heads, key = !query && head < d.heads + d.kv_heads;
                    if (query && layer.q_norm != nullptr) k.rms_norm(v, layer.q_norm, dim, layer.eps, v);
                    if (key && layer.k_norm != nullptr) k.rms_norm(v, layer.k_norm, dim, layer.eps, v);
                    if (query || key) k.rotate(v, b.trig + long(t) * d.rotary_dim, d.rotary_dim, d.interleaved);
                    if (query) {
                        float* q = b.q + long(t) * width + head * dim;
                        k.scaled(v, layer.scale, dim, q);
                    } else {
                        const int h = key ? head - d.heads : head - d.heads - d.kv_heads;
                        keep(attention, job.sequence_of[t], step.positions[t], h, !key, v);
                    }
                }
            }
        });

        phases.run(int(plan.pieces.size()), [&](int i) { attend_piece(attention, i); });

        // Output projection, added to the residual stream in place.
        const auto add = [&](const SageMatrix* m, const Rows* rows, const auto& first) {
            const int groups = groups_of(m->rows), wide = own ? 2 : 4, pieces = ceil_div(groups, wide);
            phases.run(pieces * tiles, [&](int i) {
                first();
                const int g0 = i / tiles * wide, g1 = smaller(groups, g0 + wide), ld = (g1 - g0) * kLanes;
                const auto [t0, t1, row] = part.tiles[size_t(i % tiles)];
                k.linear(m, g0, g1, rows, t0, t1, buffer, ld);
                for (int t = t0; t < t1; t++) {
                    k.add(b.x + long(t) * hidden + g0 * kLanes, buffer + long(t - t0) * ld, ld);
                }
            });
        };
        const auto for_out = [&](int t) {
            const float* from = b.attended + long(t) * width;
            if (plan.split_of[size_t(t)] >= 0) {
                join_splits(attention, t, normed.data());
                from = normed.data();
            }
            k.prepare(layer.out->kind, from, width, t, t + 1, &b.of_attended);
        };
        prepare_phase(part, for_out);
        add(layer.out, &b.of_attended, [&] { before_work(part, for_out); });

        // Gate and up in step, so that each piece ends as whole blocks of what the last matrix reads.
        const auto for_mlp = norm_rows(layer.post_norm, layer.gate_up->kind);
        prepare_phase(part, for_mlp);
        const int blocks = inner / kBlock, up = inner / kLanes;
        phases.run(blocks * tiles, [&](int i) {
            before_work(part, for_mlp);
            const int block = i / tiles;
            const auto [t0, t1, row] = part.tiles[size_t(i % tiles)];
            float* ups = buffer + kTileRows * kBlock;
            k.linear(layer.gate_up, block * 2, block * 2 + 2, &b.of_hidden, t0, t1, buffer, kBlock);
            k.linear(layer.gate_up, up + block * 2, up + block * 2 + 2, &b.of_hidden, t0, t1, ups, kBlock);
            k.silu_mul(buffer, ups, (t1 - t0) * kBlock);
            for (int t = t0; t < t1; t++) k.prepare_block(layer.down->kind, buffer + (t - t0) * kBlock, t, block, &b.of_inner);
        });
        add(layer.down, &b.of_inner, [] {});
    }
    const Part& read = *job.read;
    phases.run(int(read.pieces.size()), [&](int i) {
        const Span& span = read.pieces[size_t(i)];
        each(span, [&](int t) {
            k.rms_norm(b.x + long(t) * hidden, d.norm, hidden, d.eps, job.out + long(span.row + t - span.from) * hidden);
        });
    });
}

}  // namespace
}  // namespace sage

using namespace sage;

int sage_decoder_run(int level, int threads, const SageDecoder* d, const SageStep* step, float* out) {
    const int tokens = step->tokens;
    if (tokens == 0) return 0;
    for (int t = 0; t < tokens; t++) {
        if (step->ids[t] < 0 || step->ids[t] >= d->embedding->rows) return -2;
    }
    StepJob job{};
    job.k = &kernels(level);
    job.d = d;
    job.step = step;
    job.out = out;
    Part all = all_of(*step), some;
    const bool some_are_read = step->read != nullptr && step->reads < tokens;
    if (some_are_read) some = read_of(*step);
    // Layers of one window share a plan.
    std::vector<int> windows, plan_of(static_cast<size_t>(d->layers));
    int partials = 0;
    for (int i = 0; i < d->layers; i++) {
        size_t at = 0;
        while (at < windows.size() && windows[at] != d->layer[i].window) at++;
        if (at == windows.size()) {
            windows.push_back(d->layer[i].window);
            for (Part* part : {&all, &some}) {
                part->plans.push_back(plan_attention(
                    {d->heads, d->kv_heads, d->head_dim, d->head_dim, d->layer[i].window, 0.0f}, *step, part->spans, threads));
                partials = larger(partials, part->plans.back().partials);
            }
        }
        plan_of[size_t(i)] = int(at);
    }
    job.all = &all;
    job.read = some_are_read ? &some : &all;
    job.plan_of = plan_of.data();
    const int width = d->heads * d->head_dim, phases = 2 + 8 * d->layers;
    const bool own = tokens <= kPrivateRows;
    std::vector<Buffers> owned(size_t(larger(1, threads)));
    Arena arena;
    Buffers& b = job.b;
    // Preparation is shared by layers whose matrices may differ in kind: room for either.
    const auto rows_for = [&](int cols, int count) {
        Rows rows = take_rows(arena, SAGE_Q8_0, count, cols);
        rows.h = take_rows(arena, SAGE_BF16, count, cols).h;
        return rows;
    };
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && !arena.allocate()) return -1;
        job.counters = arena.take<Phases::Counter>(Phases::counters(phases, threads));
        b.x = arena.take<float>(size_t(tokens) * d->hidden);
        b.q = arena.take<float>(size_t(tokens) * width);
        b.attended = arena.take<float>(size_t(tokens) * width);
        b.partials = arena.take<float>(size_t(partials) * partial_floats({d->heads, d->kv_heads, d->head_dim, d->head_dim, 0, 0.0f}));
        b.trig = arena.take<float>(size_t(tokens) * d->rotary_dim);
        b.of_inner = rows_for(d->inner, tokens);
        if (own) {
            for (Buffers& mine : owned) {
                mine.of_hidden = rows_for(d->hidden, tokens);
                mine.of_attended = rows_for(width, tokens);
            }
        } else {
            b.of_hidden = rows_for(d->hidden, tokens);
            b.of_attended = rows_for(width, tokens);
        }
    }
    job.own = owned.data();
    memset(static_cast<void*>(job.counters), 0, Phases::counters(phases, threads) * sizeof(Phases::Counter));
    std::vector<int> sequence_of;
    for (int s = 0; s < step->sequences; s++) sequence_of.insert(sequence_of.end(), size_t(step->query_lens[s]), s);
    job.sequence_of = sequence_of.data();
    on_team(threads, step_body, &job);
    return 0;
}
