// What the kernels on tensor cores share: a warp's 16 row groups times columns of activations, straight from
// the packed bytes.
//
// A word of codes, masked, is an operand of four columns and one row (layout.cuh), so digit j of 16 row
// groups is a tile of 16 rows, and the 16 bytes a lane reads of a step (columns 16t .. 16t + 15, t = lane %
// 4) of row groups lane / 4 and lane / 4 + 8 are the fragments of two products over 32 columns for every j.
// That takes the columns in another order than they lie in, which is the same for the activations: the lane's
// own 16 bytes of token lane / 4 at 16t.
//
// The columns of a product are the planes of the activations: eight tokens for INT8, SIGN and TERNARY; for
// INT16 eight tokens' upper bytes, then the same tokens' lower ones, so that a lane holds both sums of a
// token.
#ifndef BITIMPL_CUDA_MMA_CUH
#define BITIMPL_CUDA_MMA_CUH

#include "layout.cuh"

namespace bitimpl {
namespace cuda {

constexpr int kTileGroups = 16;
constexpr int kTileTokens = 8;    // columns of one product
constexpr int kLaneColumns = 16;  // of a step, in one load

__device__ __forceinline__ uint32_t word_of(const uint4& four, int i) {
  return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

// A component of one segment: what has a scale of its own.
struct Unit {
  int32_t component;
  int32_t segment;
  int32_t columns;  // at most 2^24 - 1, the limit of integer activations
  int32_t steps;
};

__host__ __device__ __forceinline__ Unit unit_at(const Weight& w, int32_t index) {
  Unit unit;
  unit.component = index / w.segments;
  unit.segment = index - unit.component * w.segments;
  unit.columns = static_cast<int32_t>(least(w.segment, w.cols - unit.segment * w.segment));
  unit.steps = ceil_div(unit.columns, static_cast<int32_t>(kStep));
  return unit;
}

// Where a lane's codes of a unit lie: its two row groups. Groups beyond the last read the last one's, for
// sums that nobody stores.
struct LaneCodes {
  const uint8_t* from[2];  // of the row block in the unit
  int32_t groups[2];       // of the row block
  int32_t inside[2];       // where the group is among them
};

__device__ __forceinline__ LaneCodes lane_codes(const Weight& w, int32_t tile, const Unit& unit) {
  LaneCodes lane;
  const int first = threadIdx.x % kWarp / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t own = int64_t{tile} * kTileGroups + first + 8 * half;
    const int64_t group = least(own, w.groups - 1);
    const int64_t block = group / kBlockGroups * kBlockGroups;
    lane.groups[half] = static_cast<int32_t>(least<int64_t>(kBlockGroups, w.groups - block));
    lane.inside[half] = static_cast<int32_t>(group - block);
    lane.from[half] = w.codes + (block * w.components + unit.component * lane.groups[half]) * w.cols +
                      unit.segment * w.segment * lane.groups[half];
  }
  return lane;
}

// Whether every 16 bytes that a lane may want begin on 16 bytes and lie within one step.
__host__ __device__ __forceinline__ bool has_aligned_codes(const Weight& w) {
  return reinterpret_cast<uintptr_t>(w.codes) % 16 == 0 && w.cols % 16 == 0 && w.segment % 16 == 0;
}

// The lane's codes of a step of the unit; columns that do not exist give what the zeros among the tokens
// hide.
template <bool ALIGNED>
__device__ __forceinline__ void load_step(const LaneCodes& lane, const Unit& unit, int32_t step,
                                          uint4 (&codes)[2]) {
  const int32_t columns = least(static_cast<int32_t>(kStep), unit.columns - step * kStep);
  const int32_t first = static_cast<int32_t>(threadIdx.x % 4) * kLaneColumns;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint8_t* from = lane.from[half] + static_cast<int64_t>(step) * kStep * lane.groups[half] +
                          lane.inside[half] * columns + first;
    if (ALIGNED) {
      codes[half] = {0, 0, 0, 0};
      if (first < columns) codes[half] = load_once(from);
    } else {
      codes[half] = load_codes(from, most(columns - first, 0));
    }
  }
}

// sums += operands, of 32 columns of a step, times the half of tokens they belong to.
template <int FORMAT, int NT>
__device__ __forceinline__ void multiply_half(const uint32_t (&operands)[4][Digits<FORMAT>::kRows], int n,
                                              uint32_t low, uint32_t high,
                                              int32_t (&sums)[Digits<FORMAT>::kRows][NT][4]) {
  const uint32_t b[2] = {low, high};
#pragma unroll
  for (int j = 0; j < Digits<FORMAT>::kRows; ++j) {
    const uint32_t a[4] = {operands[0][j], operands[1][j], operands[2][j], operands[3][j]};
    mma_16x8x32(sums[j][n], a, b);
  }
}

template <int FORMAT>
__device__ __forceinline__ void decode_half(const uint4 (&codes)[2], int half,
                                            uint32_t (&operands)[4][Digits<FORMAT>::kRows]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) Digits<FORMAT>::operands(word_of(codes[i % 2], 2 * half + i / 2), operands[i]);
}

// sums += codes times tokens, of one step. tokens(n) is the lane's 16 bytes of columns 8n .. 8n + 7.
// sums[j][n][e]: digit j; row group lane / 4 + e / 2 * 8; column 8n + lane % 4 * 2 + e % 2. By halves, with
// few registers: tokens are asked for twice. UNROLL: 1 keeps the halves apart, which takes fewer registers
// still.
template <int FORMAT, int NT, int UNROLL, class TokensOf>
__device__ __forceinline__ void multiply_by_halves(const uint4 (&codes)[2], TokensOf tokens,
                                                   int32_t (&sums)[Digits<FORMAT>::kRows][NT][4]) {
#pragma unroll UNROLL
  for (int half = 0; half < 2; ++half) {
    uint32_t operands[4][Digits<FORMAT>::kRows];
    decode_half<FORMAT>(codes, half, operands);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const uint4 four = tokens(n);
      multiply_half<FORMAT, NT>(operands, n, word_of(four, 2 * half), word_of(four, 2 * half + 1), sums);
    }
  }
}

// The same, with tokens asked for once.
template <int FORMAT, int NT, class TokensOf>
__device__ __forceinline__ void multiply_whole(const uint4 (&codes)[2], TokensOf tokens,
                                               int32_t (&sums)[Digits<FORMAT>::kRows][NT][4]) {
  uint32_t operands[2][4][Digits<FORMAT>::kRows];
  decode_half<FORMAT>(codes, 0, operands[0]);
  decode_half<FORMAT>(codes, 1, operands[1]);
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const uint4 four = tokens(n);
    multiply_half<FORMAT, NT>(operands[0], n, four.x, four.y, sums);
    multiply_half<FORMAT, NT>(operands[1], n, four.z, four.w, sums);
  }
}

template <int ROWS, int NT, class T>
__device__ __forceinline__ void clear(T (&sums)[ROWS][NT][4]) {
#pragma unroll
  for (int j = 0; j < ROWS; ++j) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[j][n][e] = T{};
    }
  }
}

// From sums of operands to sums of digits.
template <int FORMAT, int NT>
__device__ __forceinline__ void to_digits(int32_t (&sums)[Digits<FORMAT>::kRows][NT][4]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      int32_t rows[kRows];
#pragma unroll
      for (int j = 0; j < kRows; ++j) rows[j] = sums[j][n][e];
      Digits<FORMAT>::rows(rows);
#pragma unroll
      for (int j = 0; j < kRows; ++j) sums[j][n][e] = rows[j];
    }
  }
}

// Eight columns of a product: 8n .. 8n + 7 of all.
struct EightColumns {
  int32_t plane;
  int64_t token;  // of the first of them
};

__device__ __forceinline__ EightColumns eight_columns(const Tokens& x, int32_t n) {
  if (x.planes == 1) return {0, int64_t{n} * kTileTokens};
  return {n % 2, int64_t{n / 2} * kTileTokens};
}

// Columns of a product that hold all tokens, a multiple of 8.
__host__ __device__ __forceinline__ int64_t product_columns(const Tokens& x) {
  return round_up<int64_t>(x.rows, kTileTokens) * x.planes;
}

// Columns whose sums of operands stay within int32.
inline int64_t most_columns(int32_t format) {
  return format == BITIMPL_BASE3 ? Digits<BITIMPL_BASE3>::kMostColumns : Digits<BITIMPL_TWO_BIT>::kMostColumns;
}

// t += scale * float(dot) for a unit whose sums of digits are complete: sums [j][n][e] as multiply() leaves
// them, columns 8 * (first + n) ... t of INT16 stands where the upper plane does.
template <int FORMAT, int NT>
__device__ __forceinline__ void add_unit(const LinearTask& task, int32_t tile, int32_t first, const Unit& unit,
                                         const int32_t (&sums)[Digits<FORMAT>::kRows][NT][4],
                                         float (&t)[Digits<FORMAT>::kRows][NT][4]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const Weight& w = task.weight;
  const Tokens& x = task.x;
  const int lane = opaque(threadIdx.x % kWarp);
  tile = opaque(tile);
  first = opaque(first);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float scales[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t row = (int64_t{tile} * kTileGroups + lane / 4 + 8 * half) * kRows + j;
      scales[j] = scale_at(w, unit.component, least(row, w.rows - 1), unit.segment);
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const EightColumns eight = eight_columns(x, first + n);
      if (eight.plane != 0) continue;
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        const int64_t token = least<int64_t>(eight.token + lane % 4 * 2 + e % 2, x.rows - 1);
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          // Planes come in pairs, so n + 1 exists where there are two.
          const int32_t codes[2] = {sums[j][n][e], sums[j][(n + 1) % NT][e]};
          const float dot = dot_of(x, codes, token, unit.segment, w.segments);
          t[j][n][e] = t[j][n][e] + scales[j] * dot;
        }
      }
    }
  }
}

// y[token, row .. row + 3], as store() makes them; row is a multiple of 4.
__device__ __forceinline__ void store_four(const Result& r, float x_scale, int64_t token, int64_t row,
                                           const float4& t) {
  float y[4] = {t.x * x_scale, t.y * x_scale, t.z * x_scale, t.w * x_scale};
  if (r.bias != nullptr) {
#pragma unroll
    for (int j = 0; j < 4; ++j) y[j] = y[j] + load_float(r.bias, r.bias_dtype, row + j);
  }
  const int64_t at = token * r.row_stride + row;
  if (r.dtype == BITIMPL_F32) {
    *reinterpret_cast<float4*>(static_cast<float*>(r.y) + at) = {y[0], y[1], y[2], y[3]};
    return;
  }
  uint32_t halves[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) halves[j] = r.dtype == BITIMPL_BF16 ? bf16_of_float(y[j]) : f16_of_float(y[j]);
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(r.y) + at) = {halves[0] | halves[1] << 16,
                                                                  halves[2] | halves[3] << 16};
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_MMA_CUH
