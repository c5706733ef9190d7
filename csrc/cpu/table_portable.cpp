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
      int8_peak_portable,
      sign_peak_portable,
  };
  return table;
}

}  // namespace bitimpl
