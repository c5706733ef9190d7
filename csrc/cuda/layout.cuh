// Where the codes of a weight lie, how a word of them becomes operands, and the end of every kernel.
#ifndef BITIMPL_CUDA_LAYOUT_CUH
#define BITIMPL_CUDA_LAYOUT_CUH

#include "ptx.cuh"
#include "task.h"

namespace bitimpl {
namespace cuda {

// A step: up to 64 columns of one segment.
struct Step {
  int32_t segment;
  int32_t columns;  // 1 .. 64
  int64_t first;    // column
};

__device__ __forceinline__ Step step_at(const Weight& w, int32_t step) {
  Step s;
  s.segment = step / w.segment_steps;
  const int64_t inside = static_cast<int64_t>(step - s.segment * w.segment_steps) * kStep;
  s.first = s.segment * w.segment + inside;
  const int64_t end = least((s.segment + 1) * w.segment, w.cols);
  s.columns = static_cast<int32_t>(least<int64_t>(kStep, end - s.first));
  return s;
}

// The first byte of row group `group` (of the whole weight) in a step; step.columns bytes follow.
__device__ __forceinline__ const uint8_t* codes_at(const Weight& w, int64_t group, int32_t component,
                                                   const Step& step) {
  const int64_t block = group / kBlockGroups * kBlockGroups;
  const int64_t groups = least<int64_t>(kBlockGroups, w.groups - block);
  return w.codes + (block * w.components + component * groups) * w.cols + step.first * groups +
         (group - block) * step.columns;
}

// Whether every step of every full row block begins on 16 bytes and holds 64 columns.
__host__ __device__ __forceinline__ bool has_whole_steps(const Weight& w) {
  return w.cols % kStep == 0 && w.segment % kStep == 0;
}

// 16 bytes, of which `valid` exist (none where it is less than 1); the others are 0. Fast where they are all there
// and aligned; elsewhere in few registers.
__device__ __forceinline__ uint4 load_codes(const uint8_t* from, int valid) {
  if (valid >= 16 && reinterpret_cast<uintptr_t>(from) % 16 == 0) return load_once(from);
  uint32_t words[4];
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    words[word] = 0;
#pragma unroll 1
    for (int i = least(valid - 4 * word, 4) - 1; i >= 0; --i) words[word] = words[word] << 8 | from[4 * word + i];
  }
  return {words[0], words[1], words[2], words[3]};
}

// A word of codes (four columns of one row group) as operands of dp4a and mma: ROWS words of unsigned bytes
// whose dot products with the activations, modulo 2^32, give those of the digits by Digits::rows().
template <int FORMAT>
struct Digits;

template <>
struct Digits<BITIMPL_TWO_BIT> {
  static constexpr int kRows = 4;
  // Masked without a shift: digit j times 4^j. Sums of 127 * 64 * 2 a column leave int32 beyond 132,104 columns.
  static constexpr int64_t kMostColumns = 131072;

  static __device__ __forceinline__ void operands(uint32_t word, uint32_t (&out)[kRows]) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) out[j] = word & 0x03030303u << 2 * j;
  }
  // In place: from the sums of operands to the sums of digits.
  static __device__ __forceinline__ void rows(int32_t (&sum)[kRows]) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) sum[j] >>= 2 * j;
  }
};

template <>
struct Digits<BITIMPL_BASE3> {
  static constexpr int kRows = 5;
  // Quotients: floor(byte / 3^j), of which digit j is the one minus three times the next. Only sums that are
  // themselves beyond int32 are wrong, since 2^32 stays 0 under both operations: 2^24 columns and more.
  static constexpr int64_t kMostColumns = int64_t{1} << 24;

  static __device__ __forceinline__ void operands(uint32_t word, uint32_t (&out)[kRows]) {
    // Two bytes a word, so that products have 16 bits; floor(v / 3) = (85 v + 80) >> 8 for v < 243, and
    // floor(v / 9) = (28 v + 8) >> 8 for v < 27: the quotient is the upper byte.
    const uint32_t even = word & 0x00ff00ffu;
    const uint32_t odd = word >> 8 & 0x00ff00ffu;
    const uint32_t even1 = even * 85u + 0x00500050u;
    const uint32_t odd1 = odd * 85u + 0x00500050u;
    const uint32_t even2 = permute_bytes(even1, 0, 0x4341) * 85u + 0x00500050u;
    const uint32_t odd2 = permute_bytes(odd1, 0, 0x4341) * 85u + 0x00500050u;
    const uint32_t even_ninth = permute_bytes(even2, 0, 0x4341);
    const uint32_t odd_ninth = permute_bytes(odd2, 0, 0x4341);
    out[0] = word;
    out[1] = permute_bytes(even1, odd1, 0x7351);
    out[2] = permute_bytes(even2, odd2, 0x7351);
    out[3] = permute_bytes(even_ninth * 85u + 0x00500050u, odd_ninth * 85u + 0x00500050u, 0x7351);
    out[4] = permute_bytes(even_ninth * 28u + 0x00080008u, odd_ninth * 28u + 0x00080008u, 0x7351);
  }
  static __device__ __forceinline__ void rows(int32_t (&sum)[kRows]) {
#pragma unroll
    for (int j = 0; j < kRows - 1; ++j) {
      sum[j] = static_cast<int32_t>(static_cast<uint32_t>(sum[j]) - 3u * static_cast<uint32_t>(sum[j + 1]));
    }
  }
};

__device__ __forceinline__ float scale_at(const Weight& w, int32_t component, int64_t row, int32_t segment) {
  const int64_t at =
      component * w.scale_component_stride + row * w.scale_row_stride + segment * w.scale_group_stride;
  if (w.scale_dtype == BITIMPL_F32) return static_cast<const float*>(w.scales)[at];
  return float_of_f16(static_cast<const uint16_t*>(w.scales)[at]);
}

// Scales and bias of rows, on their way while the block is at work.
template <int THREADS>
__device__ __forceinline__ void prefetch_scales(const Weight& w, const void* bias, int32_t bias_dtype,
                                                int64_t first_row, int32_t rows) {
  const int32_t size = w.scale_dtype == BITIMPL_F32 ? 4 : 2;
  for (int32_t i = threadIdx.x; i < rows; i += THREADS) {
    const int64_t row = first_row + i;
    if (row >= w.rows) break;
    for (int32_t component = 0; component < w.components; ++component) {
      const int64_t at = component * w.scale_component_stride + row * w.scale_row_stride;
      prefetch(static_cast<const char*>(w.scales) + at * size);
    }
    if (bias != nullptr) prefetch(static_cast<const char*>(bias) + row * (bias_dtype == BITIMPL_F32 ? 4 : 2));
  }
}

__device__ __forceinline__ float load_float(const void* from, int32_t dtype, int64_t at) {
  if (dtype == BITIMPL_F32) return static_cast<const float*>(from)[at];
  const uint16_t half = static_cast<const uint16_t*>(from)[at];
  return dtype == BITIMPL_BF16 ? float_of_bf16(half) : float_of_f16(half);
}

// float(dot) of impl.h: `codes` is the sum of digits times activations, of which code = digit - 1 is wanted.
__device__ __forceinline__ float dot_of(const Tokens& x, const int32_t (&codes)[2], int64_t token,
                                        int32_t segment, int32_t segments) {
  const int64_t at = token * segments + segment;
  const int32_t high = codes[0] - x.sums[0][at];
  if (x.planes == 1) return static_cast<float>(high);
  return static_cast<float>(int64_t{256} * high + (codes[1] - x.sums[1][at]));
}

// y[token, row] from t, the sum over components and segments (impl.h, Arithmetic). Without contraction:
// files are compiled with -fmad=false.
__device__ __forceinline__ void store(const Result& r, float x_scale, int64_t token, int64_t row, float t) {
  float y = t * x_scale;
  if (r.bias != nullptr) y = y + load_float(r.bias, r.bias_dtype, row);
  const int64_t at = token * r.row_stride + row;
  if (r.dtype == BITIMPL_F32) {
    static_cast<float*>(r.y)[at] = y;
  } else {
    static_cast<uint16_t*>(r.y)[at] = r.dtype == BITIMPL_BF16 ? bf16_of_float(y) : f16_of_float(y);
  }
}

// Whether four neighbouring rows of y can be stored at once.
__device__ __forceinline__ bool stores_four(const Result& r) {
  const int bytes = r.dtype == BITIMPL_F32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(r.y) % (4 * bytes) == 0 && r.row_stride % 4 == 0;
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_LAYOUT_CUH
