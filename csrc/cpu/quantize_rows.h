// Activation preparation on pieces of a row, written once and compiled for every instruction set:
// plain loops that compilers turn into vector code, with results that do not depend on it.
// Include from table.h only.
#ifndef BITIMPL_CPU_QUANTIZE_ROWS_H
#define BITIMPL_CPU_QUANTIZE_ROWS_H

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
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
#elif defined(__aarch64__)
    for (; i + 4 <= n; i += 4) {
      vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half + i))));
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
#elif defined(__aarch64__)
  if (n == 64) {
    // Masks of 16 values to bytes, each its own bit of eight; adding neighbours thrice joins them.
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull));
    uint8x16_t bytes[4];
    for (int i = 0; i < 4; ++i) {
      uint16x8_t halves[2];
      for (int h = 0; h < 2; ++h) {
        const uint32x4_t low = vcgezq_f32(vld1q_f32(x + 16 * i + 8 * h));
        const uint32x4_t high = vcgezq_f32(vld1q_f32(x + 16 * i + 8 * h + 4));
        halves[h] = vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
      }
      const uint8x16_t masks = vuzp1q_u8(vreinterpretq_u8_u16(halves[0]), vreinterpretq_u8_u16(halves[1]));
      bytes[i] = vandq_u8(masks, bit);
    }
    const uint8x16_t pairs = vpaddq_u8(vpaddq_u8(bytes[0], bytes[1]), vpaddq_u8(bytes[2], bytes[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
  }
#endif
  for (; j < n; ++j) word |= static_cast<uint64_t>(x[j] >= 0.0f) << j;
  return word;
}

#if defined(__aarch64__)
// Eight float64 sums in four registers.
struct Doubles {
  float64x2_t part[4];

  Doubles() {
    for (auto& two : part) two = vdupq_n_f64(0.0);
  }
  double operator[](int i) const { return part[i / 2][i % 2]; }
  Doubles operator+(const Doubles& other) const {
    Doubles sum;
    for (int i = 0; i < 4; ++i) sum.part[i] = vaddq_f64(part[i], other.part[i]);
    return sum;
  }
};
#else
typedef double Doubles __attribute__((vector_size(64)));
#endif

// sum[i] += |x[i]|, i = 0 .. 7.
inline void add_magnitudes(const float* x, Doubles& sum) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i magnitudes = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  sum += _mm512_cvtps_pd(_mm256_castsi256_ps(magnitudes));  // GCC 12 converts in halves by itself
#elif defined(__aarch64__)
  for (int i = 0; i < 2; ++i) {
    const float32x4_t magnitudes = vabsq_f32(vld1q_f32(x + 4 * i));
    sum.part[2 * i] = vaddq_f64(sum.part[2 * i], vcvt_f64_f32(vget_low_f32(magnitudes)));
    sum.part[2 * i + 1] = vaddq_f64(sum.part[2 * i + 1], vcvt_high_f64_f32(magnitudes));
  }
#else
  typedef int32_t Bits __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  Bits bits;
  memcpy(&bits, x, sizeof bits);
  bits &= 0x7fffffff;
  Floats values;
  memcpy(&values, &bits, sizeof bits);
  sum += __builtin_convertvector(values, Doubles);
#endif
}

// In 32 interleaved partial sums whatever the instruction set, so that all agree on its last bit.
double sum_magnitudes(const float* x, int64_t n) {
  constexpr int64_t kTurn = 32;
  Doubles a = {}, b = {}, c = {}, d = {};
  int64_t i = 0;
  for (; i + kTurn <= n; i += kTurn) {
    add_magnitudes(x + i, a);
    add_magnitudes(x + i + 8, b);
    add_magnitudes(x + i + 16, c);
    add_magnitudes(x + i + 24, d);
  }
  if (i < n) {
    float rest[kTurn] = {};
    memcpy(rest, x + i, sizeof(float) * static_cast<size_t>(n - i));
    add_magnitudes(rest, a);
    add_magnitudes(rest + 8, b);
    add_magnitudes(rest + 16, c);
    add_magnitudes(rest + 24, d);
  }
  const Doubles sum = (a + c) + (b + d);
  return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

double pack_signs(const float* x, int64_t n, uint64_t* signs) {
  for (int64_t begin = 0; begin < n; begin += 64) {
    signs[begin / 64] = sign_word(x + begin, n - begin < 64 ? n - begin : 64);
  }
  return sum_magnitudes(x, n);
}

double pack_ternary(const float* x, int64_t n, float threshold, uint64_t* signs, uint64_t* nonzero) {
  constexpr int64_t kPiece = 1024;
  float kept[kPiece];
  double sum = 0.0;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = n - begin < kPiece ? n - begin : kPiece;
    const float* from = x + begin;
    for (int64_t k = 0; k < count; k += 64) {
      const int64_t some = count - k < 64 ? count - k : 64;
      // sign_word() of this is the bit of `nonzero`.
      float above[64];
      for (int64_t i = 0; i < some; ++i) {
        const float magnitude = from[k + i] < 0.0f ? -from[k + i] : from[k + i];
        above[i] = magnitude > threshold ? 1.0f : -1.0f;
        kept[k + i] = magnitude > threshold ? magnitude : 0.0f;
      }
      signs[(begin + k) / 64] = sign_word(from + k, some);
      nonzero[(begin + k) / 64] = sign_word(above, some);
    }
    sum += sum_magnitudes(kept, count);
  }
  return sum;
}

// Bit i of a byte in byte i of a word, 0 or 1 each.
inline uint64_t bits_to_bytes(uint64_t bits) {
  const uint64_t places = bits * 0x0101010101010101ull & 0x8040201008040201ull;
  return (places + 0x7f7f7f7f7f7f7f7full) >> 7 & 0x0101010101010101ull;
}

int32_t spread_bits(const uint8_t* signs, const uint8_t* nonzero, int64_t n, int8_t* q) {
  int32_t sum = 0;
  int64_t k = 0;
#if defined(__AVX512BW__)
  for (; k + 64 <= n; k += 64) {
    uint64_t plus, present = ~uint64_t{0};
    memcpy(&plus, signs + k / 8, sizeof plus);
    if (nonzero != nullptr) memcpy(&present, nonzero + k / 8, sizeof present);
    const uint64_t minus = present & ~plus;
    const __m512i ones = _mm512_maskz_set1_epi8(present, 1);
    _mm512_storeu_si512(q + k, _mm512_mask_set1_epi8(ones, minus, -1));
    sum += __builtin_popcountll(present) - 2 * __builtin_popcountll(minus);
  }
#endif
  for (; k < n; k += 8) {
    const int64_t count = n - k < 8 ? n - k : 8;
    const uint32_t present = ((1u << count) - 1) & (nonzero == nullptr ? 0xffu : nonzero[k / 8]);
    const uint32_t plus = present & signs[k / 8];
    const uint32_t minus = present & ~plus;
    sum += __builtin_popcount(plus) - __builtin_popcount(minus);
    // A byte of 1 times 255 is -1; no byte carries into the next.
    const uint64_t bytes = bits_to_bytes(plus) + bits_to_bytes(minus) * 255;
    memcpy(q + k, &bytes, static_cast<size_t>(count));
  }
  return sum;
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_QUANTIZE_ROWS_H
