// The kernel table of one instruction set, entry by entry as in kernels.h. Include from
// table_<isa>.cpp only: the inner loops of the other headers are compiled there.
#ifndef BITIMPL_CPU_TABLE_H
#define BITIMPL_CPU_TABLE_H

#include "conv_depthwise.h"
#include "conv_rows.h"
#include "kernels.h"
#include "quantize_rows.h"

#define BITIMPL_DEFINE_TABLE(isa)                                                 \
  namespace bitimpl {                                                             \
  const KernelTable& kernels_##isa() {                                            \
    static const KernelTable table = {                                            \
        #isa,                                                                     \
        takes_bits_##isa,                                                         \
        ternary_##isa, ternary_scratch_##isa, binary_##isa, binary_scratch_##isa, \
        to_float, max_magnitude, round_int8, round_int16, sum_magnitudes,         \
        pack_signs, pack_ternary, spread_bits,                                    \
        sum_int8, count_ones, transpose, transpose_bits, depthwise,               \
        int8_peak_##isa, sign_peak_##isa,                                         \
    };                                                                            \
    return table;                                                                 \
  }                                                                               \
  }

#endif  // BITIMPL_CPU_TABLE_H
