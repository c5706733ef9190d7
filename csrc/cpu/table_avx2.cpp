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
      int8_peak_avx2,
      sign_peak_avx2,
  };
  return table;
}

}  // namespace bitimpl
