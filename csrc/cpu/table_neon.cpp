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
      int8_peak_neon,
      sign_peak_neon,
  };
  return table;
}

}  // namespace bitimpl
