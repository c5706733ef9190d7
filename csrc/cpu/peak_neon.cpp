// What the arithmetic units of NEON with dot products can do at most; see peak_avx512.cpp.
#include <arm_neon.h>

#include "kernels.h"

namespace bitimpl {
namespace {

constexpr int kChains = 16;

}  // namespace

int64_t int8_peak_neon(int64_t turns) {
  int32x4_t sums[kChains];
#pragma GCC unroll 16
  for (auto& sum : sums) sum = vdupq_n_s32(0);
  const int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(-1);
  for (int64_t i = 0; i < turns; ++i) {
#pragma GCC unroll 16
    for (auto& sum : sums) asm volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  }
  return turns * kChains * 16;
}

int64_t sign_peak_neon(int64_t turns) {
  uint32x4_t sums[kChains];
  uint8x16_t differ;
#pragma GCC unroll 16
  for (auto& sum : sums) sum = vdupq_n_u32(0);
  const uint8x16_t a = vdupq_n_u8(0x35), b = vdupq_n_u8(0x53), ones = vdupq_n_u8(1);
  for (int64_t i = 0; i < turns; ++i) {
#pragma GCC unroll 16
    for (auto& sum : sums) {
      asm volatile("eor %1.16b, %2.16b, %3.16b\n\tcnt %1.16b, %1.16b\n\tudot %0.4s, %1.16b, %4.16b"
                   : "+w"(sum), "=&w"(differ)
                   : "w"(a), "w"(b), "w"(ones));
    }
  }
  return turns * kChains * 128;
}

}  // namespace bitimpl
