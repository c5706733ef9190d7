#include "conv_rows.h"
#include "kernels.h"
#include "quantize_rows.h"

namespace bitimpl {

const KernelTable& kernels_neon() {
  static const KernelTable table = {
      "neon",
      ternary_neon,
      ternary_scratch_neon,
      binary_neon,
      binary_scratch_neon,
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
      int8_peak_neon,
      sign_peak_neon,
  };
  return table;
}

}  // namespace bitimpl
