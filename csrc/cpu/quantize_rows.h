// Activation preparation on pieces of a row, written once and compiled for every instruction set:
// plain loops that compilers turn into vector code, with results that do not depend on it.
// Include from table_<isa>.cpp only.
#ifndef BITIMPL_CPU_QUANTIZE_ROWS_H
#define BITIMPL_CPU_QUANTIZE_ROWS_H

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "epilogue.h"
#include "kernels.h"

namespace bitimpl {
namespace {

// Adding 1.5 * 2^23 leaves round_half_even(v) in the low bits of the sum for |v| < 2^22.
constexpr float kRoundingShift = 12582912.0f;

inline int32_t round_half_even(float value) {
  return static_cast<int32_t>(bits_from_float(value + kRoundingShift) -
                              bits_from_float(kRoundingShift));
}

void to_float(const void* x, int32_t dtype, int64_t n, float* out) {
  const uint16_t* half = static_cast<const uint16_t*>(x);
  if (dtype == BITIMPL_F32) {
    memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
  } else if (dtype == BITIMPL_BF16) {
    for (int64_t i = 0; i < n; ++i) out[i] = float_from_bf16(half[i]);
  } else {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i));
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(eight));
    }
#endif
    for (; i < n; ++i) out[i] = float_from_f16(half[i]);
  }
}

// Magnitudes of floats order like their bits, and NaN comes out above infinity.
uint32_t max_magnitude(const float* x, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t magnitude = static_cast<int32_t>(bits_from_float(x[i]) & 0x7fffffffu);
    most = magnitude > most ? magnitude : most;
  }
  return static_cast<uint32_t>(most);
}

int32_t round_int8(const float* x, int64_t n, float inverse, int8_t* q) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t value = round_half_even(x[i] * inverse);
    q[i] = static_cast<int8_t>(value);
    sum += value;
  }
  return sum;
}

void round_int16(const float* x, int64_t n, float inverse, int8_t* hi, int8_t* lo,
                 int32_t sums[2]) {
  int32_t hi_sum = 0;
  int32_t lo_sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t value = round_half_even(x[i] * inverse);
    const int32_t high = (value + 128) >> 8;  // in [-127, 127], so that low is in [-128, 127]
    const int32_t low = value - high * 256;
    hi[i] = static_cast<int8_t>(high);
    lo[i] = static_cast<int8_t>(low);
    hi_sum += high;
    lo_sum += low;
  }
  sums[0] = hi_sum;
  sums[1] = lo_sum;
}

// Bit j is x[j] >= 0, for n <= 64 values.
uint64_t sign_word(const float* x, int64_t n) {
  uint64_t word = 0;
  int64_t j = 0;
#if defined(__AVX512F__)
  for (; j + 16 <= n; j += 16) {
    const __mmask16 bits = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + j), _mm512_setzero_ps(), _CMP_GE_OQ);
    word |= static_cast<uint64_t>(bits) << j;
  }
#elif defined(__AVX2__)
  for (; j + 8 <= n; j += 8) {
    const __m256 at_least = _mm256_cmp_ps(_mm256_loadu_ps(x + j), _mm256_setzero_ps(), _CMP_GE_OQ);
    word |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(at_least))) << j;
  }
#endif
  for (; j < n; ++j) word |= static_cast<uint64_t>(x[j] >= 0.0f) << j;
  return word;
}

// Sign words of n values; the sum of their magnitudes, in eight interleaved partial sums whatever
// the instruction set, so that all agree on its last bit.
double pack_signs(const float* x, int64_t n, uint64_t* signs) {
  typedef int32_t Bits __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  typedef double Doubles __attribute__((vector_size(64)));
  Doubles lanes = {};
  for (int64_t i = 0; i < n; i += 8) {
    Bits bits = {};
    memcpy(&bits, x + i, sizeof(float) * static_cast<size_t>(n - i < 8 ? n - i : 8));
    bits &= 0x7fffffff;
    Floats magnitudes;
    memcpy(&magnitudes, &bits, sizeof bits);
    lanes += __builtin_convertvector(magnitudes, Doubles);
  }
  for (int64_t begin = 0; begin < n; begin += 64) {
    signs[begin / 64] = sign_word(x + begin, n - begin < 64 ? n - begin : 64);
  }
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
         ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_QUANTIZE_ROWS_H
