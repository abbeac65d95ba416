#include "isa_avx2.h"
#include "kernels_body.h"

namespace sage {
const Kernels* avx2_kernels() { return &kTable; }
}  // namespace sage
