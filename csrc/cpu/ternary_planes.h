// The ternary kernel for instruction sets without VNNI, written once over a handful of vector
// operations (struct Simd, one per instruction set): a piece of a row block is decoded into planes,
// one byte a digit and one row after the other, and every token of the tile takes its dot
// products from there, so that decoding costs little once there are a few tokens.
//
//   static void decode_two_bit(const uint8_t* bytes, int64_t n, uint8_t* const planes[4]);
//   static void decode_base3(const uint8_t* bytes, int64_t n, uint8_t* const planes[5]);
//       n <= 64 bytes to one digit byte each; may read nothing past n, may write past it up to 64.
//   static void dot4(const uint8_t* digits, const int8_t* x, int64_t n, int32_t sums[4]);
//       sums[r] += dot(digits + r * kPlane, x), n a multiple of 32, n <= kPlane.
//   static void dot4(const uint8_t* digits, const float* x, int64_t n, float sums[4]);
//       sums[r] += dot(digits - 1, x), any n <= kPlane; may read nothing past x[n - 1].
//
// Include from ternary_<isa>.cpp only.
#ifndef BITIMPL_CPU_TERNARY_PLANES_H
#define BITIMPL_CPU_TERNARY_PLANES_H

#include <string.h>

#include "epilogue.h"
#include "kernels.h"
#include "ternary_layout.h"

namespace bitimpl {
namespace {

constexpr int64_t kPlane = 1024;     // columns decoded at a time: 20 planes fit an L1 cache
constexpr int64_t kTileTokens = 16;  // tokens that share a decoded piece

template <bool BASE3, class Simd>
void decode_piece(const uint8_t* codes, int64_t groups, int64_t columns, uint8_t* planes) {
  constexpr int kRows = Format<BASE3>::kRows;
  for (int64_t k = 0; k < columns; k += kStep) {
    const int64_t n = columns - k < kStep ? columns - k : kStep;
    for (int64_t g = 0; g < groups; ++g, codes += n) {
      uint8_t* to[kRows];
      for (int j = 0; j < kRows; ++j) to[j] = planes + (g * kRows + j) * kPlane + k;
      if constexpr (BASE3) {
        Simd::decode_base3(codes, n, to);
      } else {
        Simd::decode_two_bit(codes, n, to);
      }
      // Digit 0 times anything is 0: columns past the piece do not count.
      if (n < kStep) {
        for (int j = 0; j < kRows; ++j) memset(to[j] + n, 0, static_cast<size_t>(kStep - n));
      }
    }
  }
}

// Sums of a segment for up to kTileTokens tokens; at most two int8 planes each.
template <bool BASE3>
struct SegmentSums {
  static constexpr int kRows = Format<BASE3>::kBlockRows;
  int32_t digits[kTileTokens][2][kRows];
  float products[kTileTokens][kRows];
};

template <bool BASE3, class Simd>
void add_piece(const LinearTask& task, const uint8_t* planes, int64_t first, int64_t tokens,
               int64_t column, int64_t columns, SegmentSums<BASE3>& sums) {
  const Activations& x = task.x;
  const int64_t padded = (columns + 31) / 32 * 32;
  for (int r = 0; r < SegmentSums<BASE3>::kRows; r += 4) {
    const uint8_t* digits = planes + r * kPlane;
    for (int64_t i = 0; i < tokens; ++i) {
      if (x.kind == BITIMPL_ACTIVATION_FLOAT) {
        const float* values = x.values + (first + i) * x.value_stride + column;
        Simd::dot4(digits, values, columns, &sums.products[i][r]);
      }
      for (int p = 0; p < x.planes; ++p) {
        const int8_t* q = x.q[p] + (first + i) * x.q_stride + column;
        Simd::dot4(digits, q, padded, &sums.digits[i][p][r]);
      }
    }
  }
}

// float(dot) of one row, token and segment.
template <bool BASE3>
inline float dot_of(const LinearTask& task, const SegmentSums<BASE3>& sums, int64_t token,
                    int64_t i, int64_t row, int64_t segment) {
  const Activations& x = task.x;
  if (x.kind == BITIMPL_ACTIVATION_FLOAT) return sums.products[i][row];
  const int64_t at = token * task.segments + segment;
  const int32_t first = sums.digits[i][0][row] - x.sums[0][at];
  if (x.planes == 1) return static_cast<float>(first);
  const int32_t second = sums.digits[i][1][row] - x.sums[1][at];
  return static_cast<float>(int64_t{256} * first + second);
}

template <bool BASE3, class Simd>
void run_block(const LinearTask& task, const Block& block, int64_t first, int64_t tokens) {
  constexpr int64_t kRows = Format<BASE3>::kBlockRows;
  alignas(64) uint8_t planes[kRows * kPlane];
  if (block.groups < kBlockGroups) memset(planes, 0, sizeof planes);
  float t[kTileTokens][kRows] = {};
  SegmentSums<BASE3> sums;
  for (int64_t c = 0; c < task.components; ++c) {
    for (int64_t s = 0; s < task.segments; ++s) {
      const uint8_t* codes = segment_codes(task, block, c, s);
      const int64_t columns = segment_columns(task, s);
      memset(&sums, 0, sizeof sums);
      for (int64_t k = 0; k < columns; k += kPlane) {
        const int64_t n = columns - k < kPlane ? columns - k : kPlane;
        decode_piece<BASE3, Simd>(codes + k * block.groups, block.groups, n, planes);
        add_piece<BASE3, Simd>(task, planes, first, tokens, s * task.segment + k, n, sums);
      }
      for (int64_t row = 0; row < block.rows; ++row) {
        const float scale = scale_at(task, c, block.first_row + row, s);
        for (int64_t i = 0; i < tokens; ++i) {
          t[i][row] = t[i][row] + scale * dot_of<BASE3>(task, sums, first + i, i, row, s);
        }
      }
    }
  }
  for (int64_t i = 0; i < tokens; ++i) {
    store_rows(task, first + i, block.first_row, block.rows, t[i]);
  }
}

template <bool BASE3, class Simd>
void run_tile(const LinearTask& task, const Tile& tile) {
  for (int64_t index = tile.block_begin; index < tile.block_end; ++index) {
    const Block block = block_at<BASE3>(task, index);
    for (int64_t first = tile.token_begin; first < tile.token_end; first += kTileTokens) {
      const int64_t left = tile.token_end - first;
      run_block<BASE3, Simd>(task, block, first, left < kTileTokens ? left : kTileTokens);
    }
  }
}

template <class Simd>
void run_ternary(const LinearTask& task, const Tile& tile) {
  if (task.format == BITIMPL_BASE3) {
    run_tile<true, Simd>(task, tile);
  } else {
    run_tile<false, Simd>(task, tile);
  }
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_TERNARY_PLANES_H
