#include "conv_rows.h"
#include "kernels.h"
#include "quantize_rows.h"

namespace bitimpl {

const KernelTable& kernels_avx512() {
  static const KernelTable table = {
      "avx512",
      ternary_avx512,
      ternary_scratch_avx512,
      binary_avx512,
      binary_scratch_avx512,
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
      int8_peak_avx512,
      sign_peak_avx512,
  };
  return table;
}

}  // namespace bitimpl
