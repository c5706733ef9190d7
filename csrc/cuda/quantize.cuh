// How a float becomes an integer (impl.h, Arithmetic): for the kernel that prepares activations and for those
// that quantise in front of their own work.
#ifndef BITIMPL_CUDA_QUANTIZE_CUH
#define BITIMPL_CUDA_QUANTIZE_CUH

#include "block.cuh"
#include "layout.cuh"
#include "wgmma_layout.h"

namespace bitimpl {
namespace cuda {

// What turns a value into integers, and the scale that turns them back.
struct Rule {
  float factor;     // INT8, INT16: q = round(x * factor); 0: a row that is not finite
  float threshold;  // TERNARY
  float scale;
};

struct Integers {
  int32_t high;
  int32_t low;
};

// INT8 and INT16, of the row's largest magnitude.
__device__ __forceinline__ Rule rule_of_largest(uint32_t largest, int32_t activation) {
  if (!finite(largest)) return {0.0f, 0.0f, NAN};
  const float limit = activation == BITIMPL_ACTIVATION_INT8 ? 127.0f : 32512.0f;
  const float amax = most(float_of_bits(largest), 1e-5f);
  return {limit / amax, 0.0f, amax / limit};
}

__device__ __forceinline__ Integers integers_of(float x, int32_t activation, const Rule& rule) {
  if (activation == BITIMPL_ACTIVATION_SIGN) return {x >= 0.0f ? 1 : -1, 0};
  if (activation == BITIMPL_ACTIVATION_TERNARY) return {(x > rule.threshold) - (x < -rule.threshold), 0};
  const int32_t value = rule.factor == 0.0f ? 0 : round_to_int(x * rule.factor);
  if (activation == BITIMPL_ACTIVATION_INT8) return {value, 0};
  const int32_t high = (value + 128) >> 8;
  return {high, value - 256 * high};
}

// Whether every fourth column of every row begins on the bytes of four.
__device__ __forceinline__ bool wide_loads(const Source& s) {
  const uintptr_t bytes = s.dtype == BITIMPL_F32 ? 16 : 8;
  return reinterpret_cast<uintptr_t>(s.x) % bytes == 0 && s.row_stride % 4 == 0;
}

// Four columns of a row as they lie in memory, those from `valid` (any number) on as 0. Loading and converting
// are apart, so that several loads can be under way.
struct RawFour {
  uint32_t word[4];  // 16-bit types: the first two
};

struct Four {
  float x[4];
};

__device__ __forceinline__ RawFour load_four(const Source& s, int64_t at, int64_t valid, bool wide) {
  RawFour raw = {};
  if (s.dtype == BITIMPL_F32) {
    const float* from = static_cast<const float*>(s.x) + at;
    if (wide && valid >= 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      return {{v.x, v.y, v.z, v.w}};
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) raw.word[i] = bits_of(from[i]);
    }
    return raw;
  }
  const uint16_t* from = static_cast<const uint16_t*>(s.x) + at;
  if (wide && valid >= 4) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    return {{v.x, v.y, 0, 0}};
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < valid) raw.word[i / 2] |= static_cast<uint32_t>(from[i]) << 16 * (i % 2);
  }
  return raw;
}

__device__ __forceinline__ Four floats_of(const RawFour& raw, int32_t dtype) {
  Four four;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint16_t half = static_cast<uint16_t>(raw.word[i / 2] >> 16 * (i % 2));
    four.x[i] = dtype == BITIMPL_F32    ? float_of_bits(raw.word[i])
                : dtype == BITIMPL_BF16 ? float_of_bf16(half)
                                        : float_of_f16(half);
  }
  return four;
}

// The largest magnitude of a row among this thread's share; the block's is the row's.
template <int THREADS>
__device__ __forceinline__ uint32_t largest_of_share(const Source& s, int64_t cols, int64_t token, bool wide) {
  constexpr int kAtOnce = 4;
  uint32_t largest = 0;
  for (int64_t k = 4 * threadIdx.x; k < cols; k += 4 * kAtOnce * THREADS) {
    RawFour raw[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t column = k + 4 * u * THREADS;
      raw[u] = load_four(s, token * s.row_stride + column, cols - column, wide);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const Four four = floats_of(raw[u], s.dtype);
#pragma unroll
      for (int i = 0; i < 4; ++i) largest = most(largest, magnitude_bits(four.x[i]));
    }
  }
  return largest;
}

// One token of the source as integers, by the whole block. q: the token's row of each plane (Tokens), or its tile's
// first; sums: its segments, which hold 0 and are seen by the block.
template <int THREADS>
__device__ __forceinline__ void quantise_token(const Weight& w, const Source& s, int64_t token, const Rule& rule,
                                               int planes, bool wide, int8_t* const (&q)[2],
                                               int32_t* const (&sums)[2], int32_t tile = 0) {
  constexpr int kLanesAStep = kStep / 4;
  constexpr int kStepsAWarp = kWarp / kLanesAStep;
  constexpr int kStepsABlock = THREADS / kLanesAStep;
  constexpr int kAtOnce = 4;
  const int lane = threadIdx.x % kWarp;
  const int column = lane % kLanesAStep * 4;
  for (int32_t first = threadIdx.x / kWarp * kStepsAWarp; first < w.steps; first += kAtOnce * kStepsABlock) {
    RawFour raw[kAtOnce];
    int32_t valid[kAtOnce];
    int32_t segment[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int32_t i = first + u * kStepsABlock + lane / kLanesAStep;
      const Step step = step_at(w, least(i, w.steps - 1));
      valid[u] = i < w.steps ? step.columns - column : 0;
      segment[u] = step.segment;
      raw[u] = load_four(s, token * s.row_stride + step.first + column, valid[u], wide);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      if (first + u * kStepsABlock >= w.steps) break;
      const int32_t i = first + u * kStepsABlock + lane / kLanesAStep;
      const Four four = floats_of(raw[u], s.dtype);
      uint32_t words[2] = {};
      int32_t totals[2] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Integers value = j < valid[u] ? integers_of(four.x[j], s.activation, rule) : Integers{0, 0};
        words[0] |= static_cast<uint32_t>(value.high & 0xff) << 8 * j;
        words[1] |= static_cast<uint32_t>(value.low & 0xff) << 8 * j;
        totals[0] += value.high;
        totals[1] += value.low;
      }
#pragma unroll
      for (int plane = 0; plane < 2; ++plane) {
        if (plane == planes) break;
        for (int mask = 1; mask < kLanesAStep; mask *= 2) totals[plane] += shuffle_xor(totals[plane], mask);
        if (i >= w.steps) continue;
        const int64_t at = tile == 0 ? int64_t{i} * kStep + column
                                     : wgmma::place_of(tile, w.steps, token % tile, i, column);
        *reinterpret_cast<uint32_t*>(q[plane] + at) = words[plane];
        if (column == 0) add_atomically(sums[plane] + segment[u], totals[plane]);
      }
    }
  }
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_QUANTIZE_CUH
