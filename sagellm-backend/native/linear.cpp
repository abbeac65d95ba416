// Rows times a packed matrix: rows are prepared in the matrix's own number format, then dealt out by output groups.
#include <string.h>

#include <vector>

#include "team.h"
#include "vec.h"
#include "work.h"

namespace sage {
namespace {

void store_output(int type, void* out, long at, const float* from, int count) {
    if (type == SAGE_TYPE_F32) {
        memcpy(static_cast<float*>(out) + at, from, size_t(count) * 4);
    } else {
        for (int i = 0; i < count; i++) static_cast<uint16_t*>(out)[at + i] = to_bf16(from[i]);
    }
}

struct LinearJob {
    const Kernels* k;
    const SageMatrix* m;
    int type, out_type, tokens;
    const void* x;
    void* out;
    Phases::Counter* counters;
    Rows shared;
    Rows* own;  // of each thread
};

void linear_body(void* context, int rank, int size) {
    const LinearJob& job = *static_cast<LinearJob*>(context);
    const SageMatrix* m = job.m;
    const int cols = m->cols;
    Phases phases(job.counters, rank, size);
    std::vector<float> wide(job.type == SAGE_TYPE_BF16 ? size_t(kPrepareRows) * cols : 0);
    const auto prepare = [&](int first, int last, Rows* rows) {
        for (int row = first; row < last; row += kPrepareRows) {
            const int stop = smaller(last, row + kPrepareRows);
            const float* from = static_cast<const float*>(job.x) + long(row) * cols;
            if (job.type == SAGE_TYPE_BF16) {
                const uint16_t* h = static_cast<const uint16_t*>(job.x) + long(row) * cols;
                for (long i = 0; i < long(stop - row) * cols; i++) wide[i] = from_bf16(h[i]);
                from = wide.data();
            }
            job.k->prepare(m->kind, from, cols, row, stop, rows);
        }
    };
    const bool own = job.tokens <= kPrivateRows;
    Rows rows = own ? job.own[rank] : job.shared;
    bool ready = !own;
    if (!own) {
        phases.run(ceil_div(job.tokens, kPrepareRows), [&](int i) {
            prepare(i * kPrepareRows, smaller(job.tokens, (i + 1) * kPrepareRows), &rows);
        });
    }
    const int groups = groups_of(m->rows), step = groups >= 512 ? 8 : job.tokens > kPrivateRows ? 4 : 2;
    const int pieces = ceil_div(groups, step), tiles = ceil_div(job.tokens, kTileRows);
    alignas(64) float buffer[kTileRows * 8 * kLanes];
    phases.run(pieces * tiles, [&](int i) {
        if (!ready) prepare(0, job.tokens, &rows);
        ready = true;
        const int g0 = i / tiles * step, g1 = smaller(groups, g0 + step);
        const int r0 = i % tiles * kTileRows, r1 = smaller(job.tokens, r0 + kTileRows);
        const long ld = long(g1 - g0) * kLanes;
        job.k->linear(m, g0, g1, &rows, r0, r1, buffer, ld);
        const int count = smaller(m->rows, g1 * kLanes) - g0 * kLanes;
        for (int r = r0; r < r1; r++) {
            store_output(job.out_type, job.out, long(r) * m->rows + g0 * kLanes, buffer + (r - r0) * ld, count);
        }
    });
}

}  // namespace
}  // namespace sage

using namespace sage;

int sage_linear(int level, int threads, const SageMatrix* matrix, int type, const void* x, int tokens, int out_type, void* out) {
    if (tokens == 0) return 0;
    LinearJob job{};
    job.k = &kernels(level);
    job.m = matrix;
    job.type = type;
    job.out_type = out_type;
    job.tokens = tokens;
    job.x = x;
    job.out = out;
    std::vector<Rows> own;
    own.resize(size_t(larger(1, threads)));
    Arena arena;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && !arena.allocate()) return -1;
        job.counters = arena.take<Phases::Counter>(Phases::counters(2, threads));
        if (tokens <= kPrivateRows) {
            for (Rows& rows : own) rows = take_rows(arena, matrix->kind, tokens, matrix->cols);
        } else {
            job.shared = take_rows(arena, matrix->kind, tokens, matrix->cols);
        }
    }
    job.own = own.data();
    memset(static_cast<void*>(job.counters), 0, Phases::counters(2, threads) * sizeof(Phases::Counter));
    on_team(threads, linear_body, &job);
    return 0;
}
