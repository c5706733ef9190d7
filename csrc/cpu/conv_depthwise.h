// The inner loops of depthwise convolutions, compiled for every instruction set: channels side by side
// in vector lanes, so that a tap is one product a channel and nothing is gathered or summed across lanes.
// Include from table.h only.
#ifndef BITIMPL_CPU_CONV_DEPTHWISE_H
#define BITIMPL_CPU_CONV_DEPTHWISE_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

#include "epilogue.h"
#include "kernels.h"

namespace bitimpl {
namespace {

#if defined(__AVX512BW__)
constexpr int64_t kChannels = 32;
#elif defined(__AVX2__)
constexpr int64_t kChannels = 16;
#else
constexpr int64_t kChannels = 8;
#endif
static_assert(kDepthwiseLanes % kChannels == 0, "rows of weights are whole vectors");

typedef int16_t Shorts __attribute__((vector_size(2 * kChannels)));

inline Shorts load_shorts(const int8_t* from) {
#if defined(__AVX512BW__)
  return reinterpret_cast<Shorts>(  // GCC 12 converts in halves by itself
      _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
  typedef int8_t Bytes __attribute__((vector_size(kChannels)));
  Bytes bytes;
  memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Shorts);
#endif
}

// Products of a weight and an int8 activation, 128 at most, that int16 surely holds.
constexpr int64_t kShortSum = 255;

// out[i] = the sum over the taps of one plane, for kChannels channels from `first` on of a token.
inline void sum_taps_of(const DepthwiseTaps& x, int plane, int64_t token, int64_t first,
                        const int16_t* weights, int64_t stride, int32_t* out) {
  for (int64_t i = 0; i < kChannels; ++i) out[i] = 0;
  for (int64_t tap = 0; tap < x.taps;) {
    const int64_t end = x.taps - tap < kShortSum ? x.taps : tap + kShortSum;
    Shorts sum = {};
    for (; tap < end; ++tap) {
      Shorts weight;
      memcpy(&weight, weights + tap * stride + first, sizeof weight);
      sum += load_shorts(x.at[plane][tap] + token * x.step[tap] + first) * weight;
    }
    int16_t part[kChannels];
    memcpy(part, &sum, sizeof part);
    for (int64_t i = 0; i < kChannels; ++i) out[i] += part[i];
  }
}

void depthwise(const LinearTask& task, const DepthwiseTaps& x, const DepthwiseWeights& weights,
               int64_t token, int64_t tokens) {
  float t[kDepthwiseRows];
  int32_t dots[2][kChannels];
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t first = 0; first < task.rows; first += kChannels) {
      float* __restrict total = t + first;
      for (int64_t r = 0; r < kChannels; ++r) total[r] = 0.0f;
      for (int64_t c = 0; c < task.components; ++c) {
        const int16_t* codes = weights.codes + c * x.taps * weights.stride;
        const float* scale = weights.scales + c * weights.stride + first;
        for (int p = 0; p < task.x.planes; ++p) {
          sum_taps_of(x, p, i, first, codes, weights.stride, dots[p]);
        }
        if (task.x.planes == 1) {
          for (int64_t r = 0; r < kChannels; ++r) {
            total[r] = total[r] + scale[r] * static_cast<float>(dots[0][r]);
          }
          continue;
        }
        for (int64_t r = 0; r < kChannels; ++r) {
          const int64_t dot = 256 * static_cast<int64_t>(dots[0][r]) + dots[1][r];
          total[r] = total[r] + scale[r] * static_cast<float>(dot);
        }
      }
    }
    store_rows(task, token + i, 0, task.rows, t);
  }
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_CONV_DEPTHWISE_H
