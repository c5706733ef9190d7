#include "conv_rows.h"
#include "kernels.h"
#include "quantize_rows.h"

namespace bitimpl {

const KernelTable& kernels_portable() {
  static const KernelTable table = {
      "portable",
      ternary_portable,
      ternary_scratch_portable,
      binary_portable,
      binary_scratch_portable,
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
      int8_peak_portable,
      sign_peak_portable,
  };
  return table;
}

}  // namespace bitimpl
