// Ternary kernels for AVX2 and FMA: the piecewise scheme of ternary_planes.h.
#include "simd_avx2.h"
#include "ternary_planes.h"

namespace bitimpl {
namespace {

inline int32_t sum_of(__m256i dwords) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(dwords), _mm256_extracti128_si256(dwords, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

inline float sum_of(__m256 floats) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(floats), _mm256_extractf128_ps(floats, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  sum = _mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1));
  return _mm_cvtss_f32(sum);
}

struct Avx2 {
  static void decode_two_bit(const uint8_t* bytes, int64_t n, uint8_t* const planes[4]) {
    const WholeStep step(bytes, n);
    for (int64_t k = 0; k < n; k += 32) {
      uint8_t* const to[4] = {planes[0] + k, planes[1] + k, planes[2] + k, planes[3] + k};
      split_two_bit(load32(step.bytes + k), to);
    }
  }

  static void decode_base3(const uint8_t* bytes, int64_t n, uint8_t* const planes[5]) {
    const WholeStep step(bytes, n);
    for (int64_t k = 0; k < n; k += 32) {
      uint8_t* const to[5] = {planes[0] + k, planes[1] + k, planes[2] + k, planes[3] + k,
                              planes[4] + k};
      split_base3(load32(step.bytes + k), to);
    }
  }

  static void dot4(const uint8_t* digits, const int8_t* x, int64_t n, int32_t sums[4]) {
    // A pair of products is at most 2 * 2 * 128 = 512: 32 of them, a whole plane, stay in int16.
    static_assert(kPlane / 32 * 512 <= 32767, "int16 sums of a plane");
    __m256i pairs[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                        _mm256_setzero_si256()};
    for (int64_t k = 0; k < n; k += 32) {
      const __m256i activations = load32(x + k);
      for (int r = 0; r < 4; ++r) {
        const __m256i products = _mm256_maddubs_epi16(load32(digits + r * kPlane + k), activations);
        pairs[r] = _mm256_add_epi16(pairs[r], products);
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (int r = 0; r < 4; ++r) sums[r] += sum_of(_mm256_madd_epi16(pairs[r], ones));
  }

  static void dot4(const uint8_t* digits, const float* x, int64_t n, float sums[4]) {
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 lanes[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                       _mm256_setzero_ps()};
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) {
      const __m256 activations = _mm256_loadu_ps(x + k);
      for (int r = 0; r < 4; ++r) {
        const void* at = digits + r * kPlane + k;
        const __m128i eight = _mm_loadl_epi64(static_cast<const __m128i*>(at));
        const __m256 digit = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
        lanes[r] = _mm256_fmadd_ps(_mm256_sub_ps(digit, one), activations, lanes[r]);
      }
    }
    for (int r = 0; r < 4; ++r) {
      float sum = sum_of(lanes[r]);
      for (int64_t i = k; i < n; ++i) {
        sum += static_cast<float>(digits[r * kPlane + i] - 1) * x[i];
      }
      sums[r] += sum;
    }
  }
};

}  // namespace

void ternary_avx2(const LinearTask& task, const Tile& tile) {
  if (bit_panel_serves(task)) bit_panel_avx2(task, tile);
  else if (panel_serves_avx2(task)) panel_avx2(task, tile);
  else run_ternary<Avx2>(task, tile);
}

int64_t ternary_scratch_avx2(const LinearTask& task) {
  if (bit_panel_serves(task)) return bit_panel_scratch_avx2(task);
  return panel_serves_avx2(task) ? panel_scratch_avx2(task) : 0;
}

}  // namespace bitimpl
