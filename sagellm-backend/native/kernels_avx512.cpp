#include "isa_avx512.h"
#include "kernels_body.h"

namespace sage {
const Kernels* avx512_kernels() { return &kTable; }
}  // namespace sage
