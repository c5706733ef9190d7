// Ternary kernels for AVX2 and FMA: the piecewise scheme of ternary_planes.h.
#include <immintrin.h>

#include "ternary_planes.h"

namespace bitimpl {
namespace {

inline __m256i load32(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}

inline void store32(void* at, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(at), value);
}

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

// The n <= 64 bytes of a step, copied where a vector would read past them.
struct StepBytes {
  alignas(32) uint8_t copy[kStep];
  const uint8_t* bytes;

  StepBytes(const uint8_t* from, int64_t n) : bytes(from) {
    if (n == kStep) return;
    memset(copy, 0, sizeof copy);
    memcpy(copy, from, static_cast<size_t>(n));
    bytes = copy;
  }
};

// floor(byte / 3) in every byte: the products need 16 bits, so even and odd bytes go apart.
inline __m256i third_of(__m256i bytes) {
  const __m256i low = _mm256_set1_epi16(0x00ff);
  const __m256i reciprocal = _mm256_set1_epi16(21846);  // ceil(2^16 / 3): exact below 2^15
  const __m256i even = _mm256_mulhi_epu16(_mm256_and_si256(bytes, low), reciprocal);
  const __m256i odd = _mm256_mulhi_epu16(_mm256_srli_epi16(bytes, 8), reciprocal);
  return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}

struct Avx2 {
  static void decode_two_bit(const uint8_t* bytes, int64_t n, uint8_t* const planes[4]) {
    const StepBytes step(bytes, n);
    const __m256i mask = _mm256_set1_epi8(3);
    for (int64_t k = 0; k < n; k += 32) {
      const __m256i codes = load32(step.bytes + k);
      // Bits that a 16-bit shift brings in from the neighbour are masked away.
      store32(planes[0] + k, _mm256_and_si256(codes, mask));
      store32(planes[1] + k, _mm256_and_si256(_mm256_srli_epi16(codes, 2), mask));
      store32(planes[2] + k, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask));
      store32(planes[3] + k, _mm256_and_si256(_mm256_srli_epi16(codes, 6), mask));
    }
  }

  static void decode_base3(const uint8_t* bytes, int64_t n, uint8_t* const planes[5]) {
    const StepBytes step(bytes, n);
    for (int64_t k = 0; k < n; k += 32) {
      __m256i rest = load32(step.bytes + k);
      for (int j = 0; j < 4; ++j) {
        const __m256i third = third_of(rest);
        const __m256i thrice = _mm256_add_epi8(third, _mm256_add_epi8(third, third));
        store32(planes[j] + k, _mm256_sub_epi8(rest, thrice));
        rest = third;
      }
      store32(planes[4] + k, rest);
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

void ternary_avx2(const LinearTask& task, const Tile& tile) { run_ternary<Avx2>(task, tile); }

int64_t ternary_scratch_avx2(const LinearTask&) { return 0; }

}  // namespace bitimpl
