// The one epilogue of every operator. Everything has internal linkage, so a file compiled for AVX-512
// keeps its copy to itself (see kernels.h).
#ifndef BITIMPL_CPU_EPILOGUE_H
#define BITIMPL_CPU_EPILOGUE_H

#include <stdint.h>

#include "../common/float16.h"
#include "kernels.h"

namespace bitimpl {
namespace {

// scale(c, n, g) of impl.h.
[[maybe_unused]] inline float scale_at(const LinearTask& task, int64_t component, int64_t row,
                                       int64_t group) {
  const int64_t at = component * task.scale_component_stride + row * task.scale_row_stride +
                     group * task.scale_group_stride;
  if (task.scale_dtype == BITIMPL_F32) return static_cast<const float*>(task.scales)[at];
  return float_from_f16(static_cast<const uint16_t*>(task.scales)[at]);
}

// y[token, row_begin .. row_begin + count) from t, the sums over components and groups:
//   y = t * activation_scale (+ bias), float32, then rounded once to y's type.
[[maybe_unused]] inline void store_rows(const LinearTask& task, int64_t token, int64_t row_begin,
                                        int64_t count, const float* t) {
  // In pieces, one plain loop a step: compilers turn each into vector code.
  constexpr int64_t kPiece = 64;
  float values[kPiece];
  const float* bias = task.bias == nullptr ? nullptr : task.bias + row_begin;
  const float scale = task.x.scale != nullptr ? task.x.scale[token] : 1.0f;
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t n = count - begin < kPiece ? count - begin : kPiece;
    const int64_t at = token * task.y_stride + row_begin + begin;
    float* __restrict out = task.y_dtype == BITIMPL_F32 ? static_cast<float*>(task.y) + at : values;
    for (int64_t i = 0; i < n; ++i) out[i] = t[begin + i] * scale;
    if (bias != nullptr) {
      for (int64_t i = 0; i < n; ++i) out[i] = out[i] + bias[begin + i];
    }
    if (task.y_dtype == BITIMPL_F32) continue;
    if (task.y_dtype == BITIMPL_BF16) {
      uint16_t* y = static_cast<uint16_t*>(task.y) + at;
      for (int64_t i = 0; i < n; ++i) y[i] = bf16_from_float(values[i]);
    } else {
      uint16_t* y = static_cast<uint16_t*>(task.y) + at;
      for (int64_t i = 0; i < n; ++i) y[i] = f16_from_float(values[i]);
    }
  }
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_EPILOGUE_H
