#include "conv_rows.h"
#include "kernels.h"
#include "quantize_rows.h"

namespace bitimpl {

const KernelTable& kernels_avx2() {
  static const KernelTable table = {
      "avx2",
      ternary_avx2,
      ternary_scratch_avx2,
      binary_avx2,
      binary_scratch_avx2,
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
      int8_peak_avx2,
      sign_peak_avx2,
  };
  return table;
}

}  // namespace bitimpl
