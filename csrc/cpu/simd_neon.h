// NEON pieces that the kernels share. Include from *_neon.cpp and *_neon_i8mm.cpp only.
#ifndef BITIMPL_CPU_SIMD_NEON_H
#define BITIMPL_CPU_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "ternary_layout.h"

namespace bitimpl {
namespace {

// floor(byte * factor / 2^(8 + SHIFT)) in every byte.
template <int SHIFT>
inline uint8x16_t quotients(uint8x16_t bytes, uint8_t factor) {
  const uint8x16_t by = vdupq_n_u8(factor);
  const uint16x8_t low = vmull_u8(vget_low_u8(bytes), vget_low_u8(by));
  const uint16x8_t high = vmull_high_u8(bytes, by);
  const uint8x16_t tops = vuzp2q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
  return vshrq_n_u8(tops, SHIFT);
}

// A byte in parts, from which digits follow without a multiplication: part 0 is digit 0, part j is
// floor(byte / B^j) (B = 3 or 4), so that digit j is part j - B * part j + 1. All fit a signed byte,
// and what holds for digits holds for their dot products, modulo 2^32.
[[maybe_unused]] inline void two_bit_parts(uint8x16_t bytes, uint8x16_t parts[4]) {
  parts[0] = vandq_u8(bytes, vdupq_n_u8(3));
  parts[1] = vshrq_n_u8(bytes, 2);
  parts[2] = vshrq_n_u8(bytes, 4);
  parts[3] = vshrq_n_u8(bytes, 6);
}

[[maybe_unused]] inline void base3_parts(uint8x16_t bytes, uint8x16_t parts[5]) {
  // floor(i / 3) for i < 32, enough from floor(255 / 9) on.
  alignas(16) static constexpr uint8_t kThirds[32] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3,  3,  4,  4,  4,  5,
                                                      5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10};
  const uint8x16x2_t thirds = {{vld1q_u8(kThirds), vld1q_u8(kThirds + 16)}};
  // Exact for every byte: 171 / 2^9 and 57 / 2^9 (layout.h).
  parts[1] = quotients<1>(bytes, 171);
  parts[2] = quotients<1>(bytes, 57);
  parts[3] = vqtbl2q_u8(thirds, parts[2]);
  parts[4] = vqtbl1q_u8(thirds.val[0], parts[3]);
  parts[0] = vmlsq_u8(bytes, parts[1], vdupq_n_u8(3));
}

// Five digits of 16 base3 bytes to rows[0 .. 4].
[[maybe_unused]] inline void split_base3(uint8x16_t bytes, uint8_t* const rows[5]) {
  uint8x16_t parts[5];
  base3_parts(bytes, parts);
  const uint8x16_t three = vdupq_n_u8(3);
  vst1q_u8(rows[0], parts[0]);
  for (int j = 1; j < 4; ++j) vst1q_u8(rows[j], vmlsq_u8(parts[j], parts[j + 1], three));
  vst1q_u8(rows[4], parts[4]);
}

// Four digits of 16 two_bit bytes to rows[0 .. 3].
[[maybe_unused]] inline void split_two_bit(uint8x16_t codes, uint8_t* const rows[4]) {
  const uint8x16_t mask = vdupq_n_u8(3);
  vst1q_u8(rows[0], vandq_u8(codes, mask));
  vst1q_u8(rows[1], vandq_u8(vshrq_n_u8(codes, 2), mask));
  vst1q_u8(rows[2], vandq_u8(vshrq_n_u8(codes, 4), mask));
  vst1q_u8(rows[3], vshrq_n_u8(codes, 6));
}

// Of 16 weight bits, as bytes of ones and zeros: byte i of `spread` holds bit i in place i % 8.
[[maybe_unused]] inline uint8x16_t bit_masks(uint8x16_t spread) {
  return vtstq_u8(spread, vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull)));
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_SIMD_NEON_H
