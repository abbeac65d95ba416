// Which instruction set to use here.
#include "kernels.h"

namespace sage {
namespace {

int best_level() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return SAGE_PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")) {
        return SAGE_AVX512;
    }
    return SAGE_AVX2;
#else
    return SAGE_PORTABLE;
#endif
}

}  // namespace

const Kernels& kernels(int level) {
    const int best = best_level();
    if (level > best) level = best;
#if defined(__x86_64__)
    if (level == SAGE_AVX512) return *avx512_kernels();
    if (level == SAGE_AVX2) return *avx2_kernels();
#endif
    return *portable_kernels();
}

}  // namespace sage

int sage_best_level(void) { return sage::best_level(); }
