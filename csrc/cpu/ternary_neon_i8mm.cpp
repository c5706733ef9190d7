// NEON with matrix products of int8: they serve large batches, everything else is as without them.
#include "kernels.h"

namespace bitimpl {

void ternary_neon_i8mm(const LinearTask& task, const Tile& tile) {
  if (panel_serves_neon_i8mm(task)) panel_neon_i8mm(task, tile);
  else ternary_neon(task, tile);
}

int64_t ternary_scratch_neon_i8mm(const LinearTask& task) {
  return panel_serves_neon_i8mm(task) ? panel_scratch_neon_i8mm(task) : ternary_scratch_neon(task);
}

// Bits are counted as without matrix products.
bool takes_bits_neon_i8mm(const LinearTask& task) { return takes_bits_neon(task); }

}  // namespace bitimpl
