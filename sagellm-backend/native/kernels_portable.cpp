#include "isa_portable.h"
#include "kernels_body.h"

namespace sage {
const Kernels* portable_kernels() { return &kTable; }
}  // namespace sage
