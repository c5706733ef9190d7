// Panels for NEON with matrix products of int8 (FEAT_I8MM): smmla multiplies two rows by two
// activation rows, eight columns at a time. Two steps of a vector lie together as eight registers of
// two rows; a step left over at the end of a piece lies as panel.h has it, one row a word.
#include "panel_neon.h"

namespace bitimpl {
namespace {

constexpr int kPairs = 8;  // of rows

struct NeonMatrixPanel : NeonDecode {
  static constexpr int kVectors = 1;
  static constexpr int kTokens = 4;

  static int64_t least_vectors(const LinearTask&) { return 8; }

  static void interleave(const uint8_t* rows, int64_t words, uint8_t* out) {
    for (int64_t pair = 0; pair < kPairs; ++pair) {
      const uint8_t* row = rows + 2 * pair * kStep;
      int64_t w = 0;
      for (; w + 2 <= words; w += 2) {
        vst1q_u8(out + 64 * w + 16 * pair, vcombine_u8(vld1_u8(row + 4 * w), vld1_u8(row + kStep + 4 * w)));
      }
      if (w < words) {
        memcpy(out + 64 * w + 8 * pair, row + 4 * w, 4);
        memcpy(out + 64 * w + 8 * pair + 4, row + kStep + 4 * w, 4);
      }
    }
  }

  template <int V, int T>
  static void multiply(const uint8_t* panel, int64_t /*vector_bytes*/, const int8_t* q, int64_t stride,
                       int64_t steps, int32_t* sums) {
    static_assert(V == 1, "one vector at a time");
    constexpr int kTokenPairs = (T + 1) / 2;
    // Lanes: first row, both tokens; second row, both tokens. An odd token is its own partner.
    int32x4_t sum[kTokenPairs][kPairs];
#pragma GCC unroll 2
    for (int p = 0; p < kTokenPairs; ++p) {
#pragma GCC unroll 8
      for (int r = 0; r < kPairs; ++r) sum[p][r] = vdupq_n_s32(0);
    }
    int8x16_t x[kTokenPairs];
    int64_t s = 0;
    for (; s + 2 <= steps; s += 2, panel += 2 * 64) {
#pragma GCC unroll 2
      for (int p = 0; p < kTokenPairs; ++p) {
        const int8_t* first = q + 2 * p * stride + 4 * s;
        x[p] = vcombine_s8(vld1_s8(first), vld1_s8(2 * p + 1 < T ? first + stride : first));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kPairs; ++r) {
        const int8x16_t rows = vreinterpretq_s8_u8(vld1q_u8(panel + 16 * r));
#pragma GCC unroll 2
        for (int p = 0; p < kTokenPairs; ++p) sum[p][r] = vmmlaq_s32(sum[p][r], rows, x[p]);
      }
    }
    if (s < steps) {
#pragma GCC unroll 2
      for (int p = 0; p < kTokenPairs; ++p) {
        const int8_t* first = q + 2 * p * stride + 4 * s;
        x[p] = vcombine_s8(vld1_s8(first), vld1_s8(2 * p + 1 < T ? first + stride : first));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kPairs; ++r) {
        // Zeros after each row's four columns, whatever activations follow there.
        const uint32x4_t both = vcombine_u32(vreinterpret_u32_u8(vld1_u8(panel + 8 * r)), vdup_n_u32(0));
        const int8x16_t rows = vreinterpretq_s8_u32(vzip1q_u32(both, vdupq_n_u32(0)));
#pragma GCC unroll 2
        for (int p = 0; p < kTokenPairs; ++p) sum[p][r] = vmmlaq_s32(sum[p][r], rows, x[p]);
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < kTokenPairs; ++p) {
      int32_t* out = sums + 2 * p * kPanelLanes;
#pragma GCC unroll 4
      for (int r = 0; r < kPairs; r += 2) {
        vst1q_s32(out + 2 * r, vuzp1q_s32(sum[p][r], sum[p][r + 1]));
        if (2 * p + 1 < T) vst1q_s32(out + kPanelLanes + 2 * r, vuzp2q_s32(sum[p][r], sum[p][r + 1]));
      }
    }
  }
};

}  // namespace

bool panel_serves_neon_i8mm(const LinearTask& task) { return panel_serves<NeonMatrixPanel>(task); }

int64_t panel_scratch_neon_i8mm(const LinearTask& task) {
  return PanelLayout<BytePanel<NeonMatrixPanel>>(task).bytes;
}

void panel_neon_i8mm(const LinearTask& task, const Tile& tile) {
  run_panel<BytePanel<NeonMatrixPanel>>(task, tile);
}

}  // namespace bitimpl
