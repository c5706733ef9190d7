// Panels for NEON with dot products: one vector, held in four registers of four rows, x 4 activation
// rows. sdot takes its four activations from a lane, so that one load of them serves four steps.
#include "panel_neon.h"

namespace bitimpl {
namespace {

struct NeonPanel : NeonDecode {
  static constexpr int kVectors = 1;
  static constexpr int kTokens = 4;

  static int64_t least_vectors(const LinearTask&) { return 8; }

  static void interleave(const uint8_t* rows, int64_t words, uint8_t* out) {
    for (int64_t quarter = 0; quarter < 4; ++quarter) {
      for (int64_t first = 0; first < words; first += 4) {
        uint32x4_t in[4], vectors[4];
        for (int r = 0; r < 4; ++r) {
          in[r] = vreinterpretq_u32_u8(vld1q_u8(rows + (quarter * 4 + r) * kStep + 4 * first));
        }
        transpose_words(in, vectors);
        for (int64_t w = 0; w < 4 && first + w < words; ++w) {
          vst1q_u8(out + 64 * (first + w) + 16 * quarter, vreinterpretq_u8_u32(vectors[w]));
        }
      }
    }
  }

  template <int V, int T>
  static void multiply(const uint8_t* panel, int64_t /*vector_bytes*/, const int8_t* q, int64_t stride,
                       int64_t steps, int32_t* sums) {
    static_assert(V == 1, "one vector at a time");
    int32x4_t sum[T][4];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) sum[t][b] = vdupq_n_s32(0);
    }
    int64_t s = 0;
    for (; s + 4 <= steps; s += 4, panel += 4 * 64) {
      int8x16_t x[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) x[t] = vld1q_s8(q + t * stride + 4 * s);
      add_step<T, 0>(panel, x, sum);
      add_step<T, 1>(panel, x, sum);
      add_step<T, 2>(panel, x, sum);
      add_step<T, 3>(panel, x, sum);
    }
    for (; s < steps; ++s, panel += 64) {
      int8x16_t x[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) x[t] = vld1q_s8(q + t * stride + 4 * s);
      add_step<T, 0>(panel, x, sum);
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) vst1q_s32(sums + t * kPanelLanes + 4 * b, sum[t][b]);
    }
  }

  // Step STEP of four: activations 4 STEP .. 4 STEP + 3 of x.
  template <int T, int STEP>
  static void add_step(const uint8_t* panel, const int8x16_t (&x)[T], int32x4_t (&sum)[T][4]) {
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const int8x16_t rows = vreinterpretq_s8_u8(vld1q_u8(panel + 64 * STEP + 16 * b));
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sum[t][b] = vdotq_laneq_s32(sum[t][b], rows, x[t], STEP);
    }
  }
};

}  // namespace

bool panel_serves_neon(const LinearTask& task) { return panel_serves<NeonPanel>(task); }

int64_t panel_scratch_neon(const LinearTask& task) {
  return PanelLayout<BytePanel<NeonPanel>>(task).bytes;
}

void panel_neon(const LinearTask& task, const Tile& tile) {
  run_panel<BytePanel<NeonPanel>>(task, tile);
}

}  // namespace bitimpl
