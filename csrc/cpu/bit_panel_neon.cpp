// Panels of bits for NEON: one vector, held in four registers of four rows, x 4 activation rows. Bits are
// counted by bytes, for as long as bytes hold the counts.
#include "bit_panel.h"
#include "simd_neon.h"

namespace bitimpl {
namespace {

// The four bytes at p in every word.
inline uint8x16_t repeat4(const uint8_t* p) {
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return vreinterpretq_u8_u32(vdupq_n_u32(word));
}

struct NeonBits : NarrowBits {
  // Digit 1 is zero, digit 2 is +1: bits k .. k + 15 of the words.
  static void keep(uint8x16_t digits, int64_t k, uint64_t* nonzero, uint64_t* signs) {
    *nonzero |= mask_bits(vmvnq_u8(vtstq_u8(digits, vdupq_n_u8(1)))) << k;
    *signs |= mask_bits(vtstq_u8(digits, vdupq_n_u8(2))) << k;
  }

  // A bit for each of 16 bytes of ones or zeros.
  static uint64_t mask_bits(uint8x16_t masks) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull));
    const uint8x16_t bits = vandq_u8(masks, bit);
    return static_cast<uint64_t>(vaddv_u8(vget_low_u8(bits))) |
           static_cast<uint64_t>(vaddv_u8(vget_high_u8(bits))) << 8;
  }

  static void two_bit(const uint8_t* bytes, int64_t n, uint64_t* nonzero, uint64_t* signs) {
    const WholeStep step(bytes, n);
    for (int j = 0; j < 4; ++j) nonzero[j] = signs[j] = 0;
    for (int64_t k = 0; k < kStep; k += 16) {
      uint8x16_t parts[4];
      two_bit_parts(vld1q_u8(step.bytes + k), parts);
      // What a part holds of higher digits stands above the two bits that are looked at.
      for (int j = 0; j < 4; ++j) keep(parts[j], k, nonzero + j, signs + j);
    }
  }

  static void base3(const uint8_t* bytes, int64_t n, uint64_t* nonzero, uint64_t* signs) {
    const WholeStep step(bytes, n);
    for (int j = 0; j < 5; ++j) nonzero[j] = signs[j] = 0;
    for (int64_t k = 0; k < kStep; k += 16) {
      uint8_t digits[5][16];
      uint8_t* const rows[5] = {digits[0], digits[1], digits[2], digits[3], digits[4]};
      split_base3(vld1q_u8(step.bytes + k), rows);
      for (int j = 0; j < 5; ++j) keep(vld1q_u8(digits[j]), k, nonzero + j, signs + j);
    }
  }

  template <Product PRODUCT, int V, int T>
  static void multiply(const uint8_t* panel, int64_t /*vector_bytes*/, const BitTokens& x, int64_t words,
                       int32_t* sums) {
    static_assert(V == 1, "one vector at a time");
    using Kernel = BitPanel<NeonBits, PRODUCT>;
    uint32x4_t differ[T][4];
    for (auto& token : differ) {
      for (auto& sum : token) sum = vdupq_n_u32(0);
    }
    for (int64_t begin = 0; begin < words; begin += kNarrowWords) {
      const int64_t run = words - begin < kNarrowWords ? words - begin : kNarrowWords;
      const int64_t at = 4 * begin;
      const BitTokens part = {x.signs + at, Kernel::kCounts ? nullptr : x.nonzero + at, x.stride};
      uint8x16_t narrow[T][4];
      count_narrow<PRODUCT, T>(panel + Kernel::kHeaderBytes + begin * Kernel::kStepBytes, part, run, narrow);
      for (int t = 0; t < T; ++t) {
        for (int b = 0; b < 4; ++b) differ[t][b] = vpadalq_u16(differ[t][b], vpaddlq_u8(narrow[t][b]));
      }
    }
    for (int t = 0; t < T; ++t) {
      for (int b = 0; b < 4; ++b) {
        int32x4_t ones = vdupq_n_s32(0);
        if (Kernel::kCounts) ones = vreinterpretq_s32_u8(vld1q_u8(panel + 16 * b));
        const int32x4_t twice = vreinterpretq_s32_u32(vshlq_n_u32(differ[t][b], 1));
        vst1q_s32(sums + t * kPanelLanes + 4 * b, vsubq_s32(ones, twice));
      }
    }
  }

  // At most kNarrowWords words, in bytes. A function of its own, so that it has all registers.
  template <Product PRODUCT, int T>
  __attribute__((noinline)) static void count_narrow(const uint8_t* step, const BitTokens& x, int64_t words,
                                                     uint8x16_t (&counts)[T][4]) {
    using Kernel = BitPanel<NeonBits, PRODUCT>;
    uint8x16_t count[T][4];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) count[t][b] = vdupq_n_u8(0);
    }
    for (int64_t w = 0; w < words; ++w, step += Kernel::kStepBytes) {
      uint8x16_t wn[4], ws[4];
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        if (Kernel::kTernary) wn[b] = vld1q_u8(step + 16 * b);
        ws[b] = vld1q_u8(step + Kernel::kStepBytes - Kernel::kPlaneBytes + 16 * b);
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const uint8x16_t xs = repeat4(x.signs + 4 * w + t * x.stride);
        const uint8x16_t xn = Kernel::kCounts ? xs : repeat4(x.nonzero + 4 * w + t * x.stride);
#pragma GCC unroll 4
        for (int b = 0; b < 4; ++b) {
          const uint8x16_t differ = vandq_u8(Kernel::kTernary ? wn[b] : xn, veorq_u8(ws[b], xs));
          count[t][b] = vaddq_u8(count[t][b], vcntq_u8(differ));
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) counts[t][b] = count[t][b];
    }
  }
};

}  // namespace

bool takes_bits_neon(const LinearTask& task) { return bits_serve<NeonBits>(task); }

int64_t bit_panel_scratch_neon(const LinearTask& task) { return bit_panel_scratch<NeonBits>(task); }

void bit_panel_neon(const LinearTask& task, const Tile& tile) { run_bit_panel<NeonBits>(task, tile); }

}  // namespace bitimpl
