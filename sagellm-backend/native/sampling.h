// What sampling needs of an instruction set: passes over one row of scores.
#pragma once

#include <stdint.h>

namespace sage {

constexpr int kScoreTile = 64;  // scores whose weights are summed as one
constexpr int kSounded = 8;     // levels at which a row is sounded for how much lies above

struct SamplingKernels {
    // The lowest id of the largest of n scores of a SageType, float32 or bfloat16; -1 when one is no number.
    int (*argmax)(int type, const void* scores, int n);
    // The largest; not a number when any is none.
    float (*largest)(int type, const void* scores, int n);
    // (score - largest) / temperature into [n], and -inf up to whole tiles.
    void (*relate)(int type, const void* scores, int n, float largest, float temperature, float* related);
    // exp of whole tiles of related scores, of each tile the sum; of all the total.
    double (*weigh)(const float* related, int tiles, float* weights, float* sums);
    // How many of whole tiles lie at each level or above or, given weights, how much they hold; summed in float32.
    void (*sound)(const float* related, const float* weights, int tiles, const float* levels, float* held);
    // Those of n at `bound` or above, with their ids, ascending; how many.
    int (*collect)(const float* related, int n, float bound, float* values, int32_t* ids);
    // How many of whole tiles are above `bound`.
    int (*count_above)(const float* related, int tiles, float bound);
};

}  // namespace sage
