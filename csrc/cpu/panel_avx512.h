// Integer products for many activation rows, shared by the ternary and binary kernels of AVX-512.
#ifndef BITIMPL_CPU_PANEL_AVX512_H
#define BITIMPL_CPU_PANEL_AVX512_H

#include <stdint.h>

#include "kernels.h"

namespace bitimpl {

// Whether the task is served by panels: 8- or 16-bit activations, and enough of them to pay for
// decoding. Depends on nothing that a workspace query does not know.
bool panel_serves_avx512(const LinearTask& task);
int64_t panel_scratch_avx512(const LinearTask& task);
void panel_avx512(const LinearTask& task, const Tile& tile);

}  // namespace bitimpl

#endif  // BITIMPL_CPU_PANEL_AVX512_H
