// The one epilogue of every operator. Everything has internal linkage, so a file compiled for AVX-512
// keeps its copy to itself (see kernels.h).
#ifndef BITIMPL_CPU_EPILOGUE_H
#define BITIMPL_CPU_EPILOGUE_H

#include <stdint.h>
#include <string.h>

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

// Bits [at, at + n) of y from the low ones of `bits`, n <= 64. The bytes at both ends may hold bits of
// other rows: of the same thread, as the pieces of work that threads take are cut between bytes.
[[maybe_unused]] inline void store_bits(uint8_t* y, int64_t at, int64_t n, uint64_t bits) {
  y += at / 8;
  for (int64_t shift = at % 8; n > 0; shift = 0, ++y) {
    const int64_t count = n < 8 - shift ? n : 8 - shift;
    const unsigned mask = ((1u << count) - 1) << shift;
    *y = static_cast<uint8_t>((*y & ~mask) | (static_cast<unsigned>(bits << shift) & mask));
    bits >>= count;
    n -= count;
  }
}

// The scale of the signs of a token, or sample, that are not those of numbers. Threads may say so at once.
[[maybe_unused]] inline void mark_not_finite(float* scale) {
  const uint32_t nan = 0x7fc00000u;
  __atomic_store_n(reinterpret_cast<uint32_t*>(scale), nan, __ATOMIC_RELAXED);
}

// The signs of n <= 64 values of a token in rows from `row` on, as bits.
[[maybe_unused]] inline void store_signs(const LinearTask& task, int64_t token, int64_t row, int64_t n,
                                         const float* values) {
  uint8_t above[64];
  const float* lower = task.lower + row;
  const float* upper = task.upper + row;
  const float* least = task.least + row;
  const float* most = task.most + row;
  int32_t outside = 0;
  for (int64_t i = 0; i < n; ++i) {
    outside |= !((values[i] >= least[i]) & (values[i] <= most[i]));
    above[i] = (values[i] >= lower[i]) & (values[i] <= upper[i]);
  }
  for (int64_t i = n; i < (n + 7) / 8 * 8; ++i) above[i] = 0;
  uint64_t bits = 0;
  for (int64_t i = 0; i < n; i += 8) {
    uint64_t eight;
    memcpy(&eight, above + i, sizeof eight);
    // Byte j times 2^(56 - 7 j) is bit 56 + j; no two products meet in a bit.
    bits |= (eight * 0x0102040810204080u >> 56) << i;
  }
  store_bits(static_cast<uint8_t*>(task.y), token * task.y_stride + row, n, bits);
  if (outside) mark_not_finite(task.y_scale + token);
}

// y[token, row_begin .. row_begin + count) from t, the sums over components and groups:
//   y = t * activation_scale (+ bias), float32, then rounded once to y's type, or the signs of it.
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
    if (task.y_dtype == BITIMPL_SIGNS) {
      store_signs(task, token, row_begin + begin, n, values);
      continue;
    }
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
