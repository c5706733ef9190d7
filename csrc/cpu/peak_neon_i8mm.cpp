// What matrix products of int8 can do at most; bits are counted as without them.
#include <arm_neon.h>

#include "kernels.h"

namespace bitimpl {

int64_t int8_peak_neon_i8mm(int64_t turns) {
  constexpr int kChains = 16;
  int32x4_t sums[kChains];
#pragma GCC unroll 16
  for (auto& sum : sums) sum = vdupq_n_s32(0);
  const int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(-1);
  for (int64_t i = 0; i < turns; ++i) {
#pragma GCC unroll 16
    for (auto& sum : sums) asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  }
  return turns * kChains * 32;
}

int64_t sign_peak_neon_i8mm(int64_t turns) { return sign_peak_neon(turns); }

}  // namespace bitimpl
