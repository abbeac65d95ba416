// Drawing tokens from rows of scores, a row to a thread: what it draws cannot depend on its neighbours.
//
// No filter sorts the vocabulary. A row is sounded at a few levels for how much lies above each; what lies above the
// lowest that is needed is collected, sorted into buckets by size, and all but one of these are kept or dropped whole.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "team.h"
#include "work.h"

namespace sage {
namespace {

constexpr int kBuckets = 1024;
constexpr float kLevels[kSounded] = {-1.0f, -2.0f, -3.0f, -4.5f, -6.5f, -9.0f, -12.0f, -16.0f};  // nats from the largest
constexpr long kTeamScores = 1 << 17;  // so many are worth waking a thread for

// Some tokens of a row, ascending.
struct Candidates {
    int count;
    float* value;  // related scores
    int32_t* id;
};

// Memory of one thread: of each a row's length, in whole tiles.
struct Scratch {
    float* related;
    float* weights;
    float* sums;  // of each tile
    Candidates some;
    uint64_t* split;
};

// Ascending, these put larger values first (none is above zero) and of equals the lower id.
uint64_t order_of(float value, int32_t id) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return uint64_t(bits & 0x7fffffffu) << 32 | uint32_t(id);
}

// Keep the fewest likeliest that make up `need`, each counting 1 or, given the row's weights, its own. None of them is
// below `least`, which may be -inf.
void keep_likeliest(Candidates* some, const float* weights, double need, float least, uint64_t* split) {
    Candidates& all = *some;
    const auto share = [&](int32_t id) { return weights != nullptr ? double(weights[id]) : 1.0; };
    if (!isfinite(least)) {
        least = 0.0f;
        for (int i = 0; i < all.count; i++) least = all.value[i] < least && isfinite(all.value[i]) ? all.value[i] : least;
    }
    const float scale = least < 0.0f ? float(kBuckets - 1) / least : -1.0f;
    const auto bucket = [&](float value) {
        const float place = value * scale;
        return place < float(kBuckets - 1) ? int(place) : kBuckets - 1;
    };
    double held[kBuckets] = {};
    for (int i = 0; i < all.count; i++) held[bucket(all.value[i])] += share(all.id[i]);
    int cut = 0;
    double before = 0.0;
    while (cut < kBuckets - 1 && before + held[cut] < need) before += held[cut++];
    int splits = 0;
    for (int i = 0; i < all.count; i++) {
        if (bucket(all.value[i]) == cut) split[splits++] = order_of(all.value[i], all.id[i]);
    }
    std::sort(split, split + splits);
    // A token stays while those before it fall short; one always does.
    int stay = 0;
    for (; stay < splits && (before < need || (cut == 0 && stay == 0)); stay++) before += share(int32_t(split[stay]));
    const uint64_t last = stay != 0 ? split[stay - 1] : 0;
    int kept = 0;
    for (int i = 0; i < all.count; i++) {
        const float value = all.value[i];
        const int32_t id = all.id[i];
        const int own = bucket(value);
        const bool stays = own < cut || (own == cut && stay != 0 && order_of(value, id) <= last);
        // Written whether it stays or not: which is hard to predict.
        all.value[kept] = value;
        all.id[kept] = id;
        kept += stays;
    }
    all.count = kept;
}

// The same of a whole row, whose scores are `temperature` times as far apart as its related scores are.
void keep_likeliest_of_all(const SamplingKernels& k, int vocabulary, const float* weights, double need, float temperature,
                           Scratch* s) {
    float levels[kSounded], held[kSounded];
    // How many lie above a level does not depend on the temperature, what they hold lies near the largest at any.
    for (int i = 0; i < kSounded; i++) levels[i] = weights != nullptr ? kLevels[i] : kLevels[i] / temperature;
    k.sound(s->related, weights, ceil_div(vocabulary, kScoreTile), levels, held);
    // As much as float32's rounding could have added.
    const double rounding = weights != nullptr ? 6e-8 * vocabulary : 0.0;
    int level = 0;
    while (level < kSounded && held[level] < need * (1.0 + rounding)) level++;
    const float bound = level < kSounded ? levels[level] : -INFINITY;
    s->some.count = k.collect(s->related, vocabulary, bound, s->some.value, s->some.id);
    keep_likeliest(&s->some, weights, need, bound, s->split);
}

// Index of the first at which the running sum passes `target`, which is made relative to what comes before it; where by
// rounding none does, of the last at which it rises.
template <class Weight>
int first_past(const Weight& weight, int count, double* target) {
    double sum = 0.0, before = 0.0;
    int place = 0;
    for (int i = 0; i < count; i++) {
        const double next = sum + double(weight(i));
        if (next > sum) place = i, before = sum;
        if (next > *target) break;
        sum = next;
    }
    *target -= before;
    return place;
}

int draw_of_all(const SamplingKernels& k, int vocabulary, double uniform, const Scratch& s) {
    const int tiles = ceil_div(vocabulary, kScoreTile);
    double target = uniform * k.weigh(s.related, tiles, s.weights, s.sums);
    const int tile = first_past([&](int i) { return s.sums[i]; }, tiles, &target);
    const float* weights = s.weights + tile * kScoreTile;
    return tile * kScoreTile + first_past([&](int i) { return weights[i]; }, kScoreTile, &target);
}

int draw_of_some(double uniform, const Scratch& s) {
    const Candidates& some = s.some;
    const auto weight = [&](int i) { return s.weights[some.id[i]]; };
    double target = 0.0;
    for (int i = 0; i < some.count; i++) target += double(weight(i));
    target *= uniform;
    return some.id[first_past(weight, some.count, &target)];
}

// Weights of candidates alone, each where a row's weights would be.
void weigh_some(const SamplingKernels& k, Scratch* s) {
    float values[kScoreTile], weights[kScoreTile], sum;
    for (int i = 0; i < s->some.count; i += kScoreTile) {
        const int count = smaller(kScoreTile, s->some.count - i);
        for (int j = 0; j < kScoreTile; j++) values[j] = j < count ? s->some.value[i + j] : -INFINITY;
        k.weigh(values, 1, weights, &sum);
        for (int j = 0; j < count; j++) s->weights[s->some.id[i + j]] = weights[j];
    }
}

// -1 when the scores are no numbers.
int draw(const SamplingKernels& k, const SageDraw& d, int vocabulary, Scratch* s) {
    if (d.temperature == 0.0f) return k.argmax(d.type, d.scores, vocabulary);
    const float largest = k.largest(d.type, d.scores, vocabulary);
    if (!isfinite(largest)) return -1;
    // Relative to the largest, a tiny temperature cannot overflow.
    k.relate(d.type, d.scores, vocabulary, largest, d.temperature, s->related);
    const bool top_k = d.top_k > 0 && d.top_k < vocabulary, min_p = d.min_p > -INFINITY;
    if (top_k) {
        keep_likeliest_of_all(k, vocabulary, nullptr, d.top_k, d.temperature, s);
        weigh_some(k, s);
        if (d.top_p < 1.0) {
            double total = 0.0;
            for (int i = 0; i < s->some.count; i++) total += double(s->weights[s->some.id[i]]);
            keep_likeliest(&s->some, s->weights, d.top_p * total, -INFINITY, s->split);
        }
    } else if (d.top_p < 1.0) {
        const double total = k.weigh(s->related, ceil_div(vocabulary, kScoreTile), s->weights, s->sums);
        keep_likeliest_of_all(k, vocabulary, s->weights, d.top_p * total, d.temperature, s);
    } else if (min_p) {
        s->some.count = k.collect(s->related, vocabulary, d.min_p, s->some.value, s->some.id);
        weigh_some(k, s);
    } else {
        return draw_of_all(k, vocabulary, d.uniform, *s);
    }
    if (min_p) {
        int kept = 0;
        for (int i = 0; i < s->some.count; i++) {
            if (s->some.value[i] >= d.min_p) s->some.id[kept++] = s->some.id[i];
        }
        s->some.count = kept;
    }
    return draw_of_some(d.uniform, *s);
}

void report(const SamplingKernels& k, const SageDraw& d, int vocabulary, Scratch* s, SageDrawn* drawn, int32_t* top_ids,
            float* top_logprobs) {
    drawn->rank = 1;
    drawn->top = 0;
    drawn->logprob = NAN;
    const float largest = k.largest(d.raw_type, d.raw, vocabulary);
    if (!isfinite(largest)) return;
    const int tiles = ceil_div(vocabulary, kScoreTile);
    k.relate(d.raw_type, d.raw, vocabulary, largest, 1.0f, s->related);
    const double log_total = log(k.weigh(s->related, tiles, s->weights, s->sums));
    const float own = s->related[drawn->token];
    drawn->logprob = float(double(own) - log_total);
    drawn->rank = k.count_above(s->related, tiles, own) + 1;
    if (d.top <= 0) return;
    drawn->top = smaller(d.top, vocabulary);
    keep_likeliest_of_all(k, vocabulary, nullptr, drawn->top, 1.0f, s);
    for (int i = 0; i < drawn->top; i++) s->split[i] = order_of(s->some.value[i], s->some.id[i]);
    std::sort(s->split, s->split + drawn->top);
    for (int i = 0; i < drawn->top; i++) {
        top_ids[i] = int32_t(s->split[i]);
        top_logprobs[i] = float(double(s->related[top_ids[i]]) - log_total);
    }
}

struct SampleJob {
    const SamplingKernels* k;
    const SageDraw* draws;
    int rows, vocabulary, width;
    SageDrawn* drawn;
    int32_t* top_ids;
    float* top_logprobs;
    Phases::Counter* counters;
    Scratch* scratch;  // of each thread
};

void sample_body(void* context, int rank, int size) {
    const SampleJob& job = *static_cast<SampleJob*>(context);
    Scratch scratch = job.scratch[rank];
    Phases(job.counters, rank, size).run(job.rows, [&](int row) {
        const SageDraw& d = job.draws[row];
        SageDrawn& drawn = job.drawn[row];
        drawn.token = d.token >= 0 ? d.token : draw(*job.k, d, job.vocabulary, &scratch);
        const long at = long(row) * job.width;
        if (d.top < 0 || drawn.token < 0) return;
        report(*job.k, d, job.vocabulary, &scratch, &drawn, job.top_ids + at, job.top_logprobs + at);
    });
}

struct GreedyJob {
    const SamplingKernels* k;
    int type, rows, vocabulary;
    const uint8_t* scores;
    int32_t* tokens;
    Phases::Counter* counters;
};

void greedy_body(void* context, int rank, int size) {
    const GreedyJob& job = *static_cast<GreedyJob*>(context);
    const size_t stride = size_t(job.vocabulary) * (job.type == SAGE_TYPE_BF16 ? 2 : 4);
    Phases(job.counters, rank, size).run(job.rows, [&](int row) {
        job.tokens[row] = job.k->argmax(job.type, job.scores + size_t(row) * stride, job.vocabulary);
    });
}

int team_of(int threads, int rows, int vocabulary) {
    return long(rows) * vocabulary < kTeamScores ? 1 : larger(1, smaller(threads, rows));
}

}  // namespace
}  // namespace sage

using namespace sage;

int sage_sample(int level, int threads, const SageDraw* draws, int rows, int vocabulary, SageDrawn* drawn, int width,
                int32_t* top_ids, float* top_logprobs) {
    if (rows == 0) return 0;
    threads = team_of(threads, rows, vocabulary);
    SampleJob job = {&kernels(level).sampling, draws, rows, vocabulary, width, drawn, top_ids, top_logprobs, nullptr, nullptr};
    const size_t tiles = size_t(ceil_div(vocabulary, kScoreTile)), padded = tiles * kScoreTile;
    Arena arena;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && !arena.allocate()) return -1;
        job.counters = arena.take<Phases::Counter>(Phases::counters(1, threads));
        job.scratch = arena.take<Scratch>(size_t(threads));
        for (int i = 0; i < threads; i++) {
            const Scratch own = {arena.take<float>(padded), arena.take<float>(padded), arena.take<float>(tiles),
                                 {0, arena.take<float>(padded), arena.take<int32_t>(padded)},
                                 arena.take<uint64_t>(padded)};
            if (pass == 1) job.scratch[i] = own;
        }
    }
    memset(static_cast<void*>(job.counters), 0, Phases::counters(1, threads) * sizeof(Phases::Counter));
    on_team(threads, sample_body, &job);
    return 0;
}

int sage_greedy(int level, int threads, int type, const void* scores, int rows, int vocabulary, int32_t* tokens) {
    threads = team_of(threads, rows, vocabulary);
    GreedyJob job = {&kernels(level).sampling, type, rows, vocabulary, static_cast<const uint8_t*>(scores), tokens, nullptr};
    if (threads == 1) {
        greedy_body(&job, 0, 1);
        return 0;
    }
    Arena arena;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && !arena.allocate()) return -1;
        job.counters = arena.take<Phases::Counter>(Phases::counters(1, threads));
    }
    memset(static_cast<void*>(job.counters), 0, Phases::counters(1, threads) * sizeof(Phases::Counter));
    on_team(threads, greedy_body, &job);
    return 0;
}
