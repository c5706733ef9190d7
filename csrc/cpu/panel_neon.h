// What the panels of NEON share, with and without matrix products of int8. Include from
// panel_neon*.cpp only.
#ifndef BITIMPL_CPU_PANEL_NEON_H
#define BITIMPL_CPU_PANEL_NEON_H

#include "byte_panel.h"
#include "simd_neon.h"

namespace bitimpl {
namespace {

struct NeonDecode : PlainSums {
  static void two_bit(const uint8_t* bytes, int64_t n, uint8_t* rows) {
    const WholeStep step(bytes, n);
    for (int64_t k = 0; k < kStep; k += 16) {
      uint8_t* const to[4] = {rows + k, rows + kStep + k, rows + 2 * kStep + k, rows + 3 * kStep + k};
      split_two_bit(vld1q_u8(step.bytes + k), to);
    }
  }

  static void base3(const uint8_t* bytes, int64_t n, uint8_t* rows) {
    const WholeStep step(bytes, n);
    for (int64_t k = 0; k < kStep; k += 16) {
      uint8_t* const to[5] = {rows + k, rows + kStep + k, rows + 2 * kStep + k, rows + 3 * kStep + k,
                              rows + 4 * kStep + k};
      split_base3(vld1q_u8(step.bytes + k), to);
    }
  }

  static void bits(uint64_t word, uint8_t* row) {
    for (int64_t k = 0; k < kStep; k += 16, word >>= 16) {
      const uint8x16_t spread = vcombine_u8(vdup_n_u8(static_cast<uint8_t>(word)),
                                            vdup_n_u8(static_cast<uint8_t>(word >> 8)));
      vst1q_u8(row + k, vandq_u8(bit_masks(spread), vdupq_n_u8(2)));
    }
  }
};

// Words of four rows to a word of every row: word r of out[w] is word w of in[r].
inline void transpose_words(const uint32x4_t (&in)[4], uint32x4_t (&out)[4]) {
  const uint64x2_t low01 = vreinterpretq_u64_u32(vzip1q_u32(in[0], in[1]));
  const uint64x2_t low23 = vreinterpretq_u64_u32(vzip1q_u32(in[2], in[3]));
  const uint64x2_t high01 = vreinterpretq_u64_u32(vzip2q_u32(in[0], in[1]));
  const uint64x2_t high23 = vreinterpretq_u64_u32(vzip2q_u32(in[2], in[3]));
  out[0] = vreinterpretq_u32_u64(vzip1q_u64(low01, low23));
  out[1] = vreinterpretq_u32_u64(vzip2q_u64(low01, low23));
  out[2] = vreinterpretq_u32_u64(vzip1q_u64(high01, high23));
  out[3] = vreinterpretq_u32_u64(vzip2q_u64(high01, high23));
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_PANEL_NEON_H
