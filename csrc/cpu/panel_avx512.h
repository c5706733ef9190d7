// What the panels of AVX-512 share: from sums to results. Include from *panel_avx512.cpp only.
#ifndef BITIMPL_CPU_PANEL_AVX512_H
#define BITIMPL_CPU_PANEL_AVX512_H

#include "panel.h"
#include "simd_avx512.h"

namespace bitimpl {
namespace {

// The operations of PlainSums.
struct Avx512Sums {
  static void add_scaled(const int32_t* sums, int32_t offset, const float* scale, float* t) {
    add_product(scale, _mm512_cvtepi32_ps(dot_of(sums, offset)), t);
  }

  static void add_scaled(const int32_t* high, int32_t high_offset, const int32_t* low,
                         int32_t low_offset, const float* scale, float* t) {
    add_product(scale, combine_planes(dot_of(high, high_offset), dot_of(low, low_offset)), t);
  }

  static __m512i dot_of(const int32_t* sums, int32_t offset) {
    return _mm512_sub_epi32(_mm512_load_si512(sums), _mm512_set1_epi32(offset));
  }

  static void add_product(const float* scale, __m512 dot, float* t) {
    const __m512 product = _mm512_mul_ps(_mm512_loadu_ps(scale), dot);
    _mm512_store_ps(t, _mm512_add_ps(_mm512_load_ps(t), product));
  }

  static void finish(const LinearTask& task, int64_t token, int64_t row, int64_t count,
                     const int32_t* sums, int32_t offset, const float* scale) {
    const __m512 dot = _mm512_cvtepi32_ps(dot_of(sums, offset));
    const __m512 t = _mm512_mul_ps(_mm512_loadu_ps(scale), dot);
    // From zero, as impl.h has it: a negative scale times 0 is -0, the sum is not.
    store_vector(task, token, row, count, _mm512_add_ps(_mm512_setzero_ps(), t));
  }

  static void store(const LinearTask& task, int64_t token, int64_t row, int64_t count, const float* t) {
    store_vector(task, token, row, count, _mm512_loadu_ps(t));
  }
};

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_PANEL_AVX512_H
