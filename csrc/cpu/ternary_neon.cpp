// Ternary kernels for NEON with dot products (sdot). One or two vectors of int8 activations take
// their dot products from the parts of the packed bytes in registers; more of them, and float
// activations, go through the planes of ternary_planes.h, large batches through panels.
#include "simd_neon.h"
#include "ternary_planes.h"

namespace bitimpl {
namespace {

inline int8x16_t load_signed(const uint8_t* at) { return vreinterpretq_s8_u8(vld1q_u8(at)); }

// Sums wrap: only what is left of them once sum(q) is taken away is known to fit (impl.h).
inline int32_t wrapped_sum(int32_t a, int32x4_t lanes) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(vaddvq_s32(lanes)));
}

struct Neon {
  static void decode_two_bit(const uint8_t* bytes, int64_t n, uint8_t* const planes[4]) {
    const WholeStep step(bytes, n);
    for (int64_t k = 0; k < n; k += 16) {
      uint8_t* const to[4] = {planes[0] + k, planes[1] + k, planes[2] + k, planes[3] + k};
      split_two_bit(vld1q_u8(step.bytes + k), to);
    }
  }

  static void decode_base3(const uint8_t* bytes, int64_t n, uint8_t* const planes[5]) {
    const WholeStep step(bytes, n);
    for (int64_t k = 0; k < n; k += 16) {
      uint8_t* const to[5] = {planes[0] + k, planes[1] + k, planes[2] + k, planes[3] + k,
                              planes[4] + k};
      split_base3(vld1q_u8(step.bytes + k), to);
    }
  }

  static void dot4(const uint8_t* digits, const int8_t* x, int64_t n, int32_t sums[4]) {
    int32x4_t lanes[4][2];
    for (auto& row : lanes) row[0] = row[1] = vdupq_n_s32(0);
    for (int64_t k = 0; k < n; k += 32) {
      const int8x16_t first = vld1q_s8(x + k);
      const int8x16_t second = vld1q_s8(x + k + 16);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const uint8_t* row = digits + r * kPlane + k;
        lanes[r][0] = vdotq_s32(lanes[r][0], load_signed(row), first);
        lanes[r][1] = vdotq_s32(lanes[r][1], load_signed(row + 16), second);
      }
    }
    for (int r = 0; r < 4; ++r) {
      sums[r] = wrapped_sum(sums[r], vaddq_s32(lanes[r][0], lanes[r][1]));
    }
  }

  static void dot4(const uint8_t* digits, const float* x, int64_t n, float sums[4]) {
    float32x4_t lanes[4][2];
    for (auto& row : lanes) row[0] = row[1] = vdupq_n_f32(0.0f);
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) {
      const float32x4_t first = vld1q_f32(x + k);
      const float32x4_t second = vld1q_f32(x + k + 4);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const uint8x8_t eight = vld1_u8(digits + r * kPlane + k);
        const int16x8_t codes = vmovl_s8(vsub_s8(vreinterpret_s8_u8(eight), vdup_n_s8(1)));
        const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes)));
        const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(codes));
        lanes[r][0] = vfmaq_f32(lanes[r][0], low, first);
        lanes[r][1] = vfmaq_f32(lanes[r][1], high, second);
      }
    }
    for (int r = 0; r < 4; ++r) {
      float sum = vaddvq_f32(vaddq_f32(lanes[r][0], lanes[r][1]));
      for (int64_t i = k; i < n; ++i) {
        sum += static_cast<float>(digits[r * kPlane + i] - 1) * x[i];
      }
      sums[r] += sum;
    }
  }
};

// ---- one or two vectors of int8 activations -------------------------------------------------

constexpr int64_t kMostVectors = 2;

template <bool BASE3>
inline void parts_of(uint8x16_t bytes, uint8x16_t* parts) {
  if constexpr (BASE3) base3_parts(bytes, parts);
  else two_bit_parts(bytes, parts);
}

// The dot products of one segment: codes of the block's `groups` row groups, column 0 on.
struct Segment {
  const uint8_t* codes;
  int64_t groups;
  int64_t columns;
  const int8_t* q[kMostVectors];
};

// sums[v][row] of the GROUPS row groups from `first` on. A function of its own, so that it has all
// registers.
template <bool BASE3, int GROUPS, int VECTORS>
__attribute__((noinline)) void dot_groups(const Segment& segment, int64_t first,
                                          uint32_t (*sums)[kBase3BlockRows]) {
  constexpr int kRows = Format<BASE3>::kRows;
  constexpr uint32_t kBase = BASE3 ? 3 : 4;
  int32x4_t lanes[VECTORS][GROUPS][kRows];
#pragma GCC unroll 2
  for (int v = 0; v < VECTORS; ++v) {
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; ++g) {
#pragma GCC unroll 5
      for (int j = 0; j < kRows; ++j) lanes[v][g][j] = vdupq_n_s32(0);
    }
  }
  const int8_t* q[VECTORS];
  for (int v = 0; v < VECTORS; ++v) q[v] = segment.q[v];
  const auto add = [&lanes, &q](const uint8_t* bytes, int64_t distance, int64_t column) {
    int8x16_t x[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) x[v] = vld1q_s8(q[v] + column);
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; ++g) {
      uint8x16_t parts[kRows];
      parts_of<BASE3>(vld1q_u8(bytes + g * distance), parts);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) {
#pragma GCC unroll 5
        for (int j = 0; j < kRows; ++j) {
          lanes[v][g][j] = vdotq_s32(lanes[v][g][j], vreinterpretq_s8_u8(parts[j]), x[v]);
        }
      }
    }
  };
  const uint8_t* codes = segment.codes;
  int64_t k = 0;
  for (; k + kStep <= segment.columns; k += kStep, codes += segment.groups * kStep) {
    // Unrolled, the four need more registers than there are.
#pragma GCC unroll 1
    for (int64_t i = 0; i < kStep; i += 16) add(codes + first * kStep + i, kStep, k + i);
  }
  if (k < segment.columns) {
    const int64_t n = segment.columns - k;
    alignas(16) uint8_t rest[GROUPS][kStep] = {};
    for (int g = 0; g < GROUPS; ++g) memcpy(rest[g], codes + (first + g) * n, static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i += 16) add(rest[0] + i, kStep, k + i);
  }
  for (int v = 0; v < VECTORS; ++v) {
    for (int g = 0; g < GROUPS; ++g) {
      uint32_t* out = sums[v] + (first + g) * kRows;
      for (int j = 0; j < kRows; ++j) out[j] = static_cast<uint32_t>(vaddvq_s32(lanes[v][g][j]));
      for (int j = 1; j < kRows - 1; ++j) out[j] -= kBase * out[j + 1];
    }
  }
}

// As many row groups at a time as leave all sums and parts in registers.
template <bool BASE3, int VECTORS>
void dot_segment(const Segment& segment, uint32_t (*sums)[kBase3BlockRows]) {
  constexpr int kMost = (BASE3 ? 2 : 4) / VECTORS;
  int64_t g = 0;
  for (; g + kMost <= segment.groups; g += kMost) dot_groups<BASE3, kMost, VECTORS>(segment, g, sums);
  for (; g < segment.groups; ++g) dot_groups<BASE3, 1, VECTORS>(segment, g, sums);
}

// The block's rows for all tokens of the tile, which with their planes are VECTORS vectors.
template <bool BASE3, int VECTORS>
void run_few(const LinearTask& task, const Block& block, const Tile& tile) {
  const Activations& x = task.x;
  const int64_t tokens = VECTORS / x.planes;
  float t[kMostVectors][kBase3BlockRows] = {};
  uint32_t sums[kMostVectors][kBase3BlockRows];
  for (int64_t c = 0; c < task.components; ++c) {
    for (int64_t s = 0; s < task.segments; ++s) {
      Segment segment = {segment_codes(task, block, c, s), block.groups, segment_columns(task, s), {}};
      uint32_t offsets[kMostVectors];  // sum(q) of every vector
      for (int64_t v = 0; v < VECTORS; ++v) {
        const int64_t token = tile.token_begin + v / x.planes;
        const int64_t plane = v % x.planes;
        segment.q[v] = x.q[plane] + token * x.q_stride + s * task.segment;
        offsets[v] = static_cast<uint32_t>(x.sums[plane][token * task.segments + s]);
      }
      dot_segment<BASE3, VECTORS>(segment, sums);
      for (int64_t row = 0; row < block.rows; ++row) {
        const float scale = scale_at(task, c, block.first_row + row, s);
        for (int64_t i = 0; i < tokens; ++i) {
          const int64_t v = i * x.planes;
          int64_t dot = static_cast<int32_t>(sums[v][row] - offsets[v]);
          if (x.planes == 2) dot = 256 * dot + static_cast<int32_t>(sums[v + 1][row] - offsets[v + 1]);
          t[i][row] = t[i][row] + scale * static_cast<float>(dot);
        }
      }
    }
  }
  for (int64_t i = 0; i < tokens; ++i) {
    store_rows(task, tile.token_begin + i, block.first_row, block.rows, t[i]);
  }
}

template <bool BASE3>
void run_few_tile(const LinearTask& task, const Tile& tile, int64_t vectors) {
  for (int64_t index = tile.block_begin; index < tile.block_end; ++index) {
    const Block block = block_at<BASE3>(task, index);
    if (vectors == 1) run_few<BASE3, 1>(task, block, tile);
    else run_few<BASE3, 2>(task, block, tile);
  }
}

}  // namespace

void ternary_neon(const LinearTask& task, const Tile& tile) {
  if (bit_panel_serves(task)) return bit_panel_neon(task, tile);
  if (panel_serves_neon(task)) return panel_neon(task, tile);
  const int64_t vectors = (tile.token_end - tile.token_begin) * task.x.planes;
  if (vectors == 0 || vectors > kMostVectors) return run_ternary<Neon>(task, tile);
  if (task.format == BITIMPL_BASE3) run_few_tile<true>(task, tile, vectors);
  else run_few_tile<false>(task, tile, vectors);
}

int64_t ternary_scratch_neon(const LinearTask& task) {
  if (bit_panel_serves(task)) return bit_panel_scratch_neon(task);
  return panel_serves_neon(task) ? panel_scratch_neon(task) : 0;
}

}  // namespace bitimpl
