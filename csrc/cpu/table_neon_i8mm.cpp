#include "conv_rows.h"
#include "kernels.h"
#include "quantize_rows.h"

namespace bitimpl {

const KernelTable& kernels_neon_i8mm() {
  static const KernelTable table = {
      "neon_i8mm",
      ternary_neon_i8mm,
      ternary_scratch_neon_i8mm,
      binary_neon_i8mm,
      binary_scratch_neon_i8mm,
      to_float,
      max_magnitude,
      round_int8,
      round_int16,
      pack_signs,
      sum_int8,
      count_ones,
      transpose,
      transpose_bits,
      add_scaled,
      store_rows,
      int8_peak_neon_i8mm,
      sign_peak_neon_i8mm,
  };
  return table;
}

}  // namespace bitimpl
