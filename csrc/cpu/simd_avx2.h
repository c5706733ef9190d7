// AVX2 pieces that the kernels share. Include from *_avx2.cpp only.
#ifndef BITIMPL_CPU_SIMD_AVX2_H
#define BITIMPL_CPU_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "ternary_layout.h"

namespace bitimpl {
namespace {

inline __m256i load32(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}

inline void store32(void* at, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(at), value);
}

// The four bytes at p in every dword.
[[maybe_unused]] inline __m256i broadcast4(const void* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// 8 x 8 words of 32 bits: word r of out[w] is word w of in[r].
[[maybe_unused]] inline void transpose_words(const __m256i* in, __m256i* out) {
  __m256i a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    b[4 * i + 0] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  // b[4 i + j]: rows 4 i .. 4 i + 3, words j and j + 4 in the two 128-bit lanes.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    out[j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x20);
    out[j + 4] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x31);
  }
}

// Four digits of 32 two_bit bytes to rows[0 .. 3].
[[maybe_unused]] inline void split_two_bit(__m256i codes, uint8_t* const rows[4]) {
  const __m256i mask = _mm256_set1_epi8(3);
  // Bits that a 16-bit shift brings in from the neighbour are masked away.
  store32(rows[0], _mm256_and_si256(codes, mask));
  store32(rows[1], _mm256_and_si256(_mm256_srli_epi16(codes, 2), mask));
  store32(rows[2], _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask));
  store32(rows[3], _mm256_and_si256(_mm256_srli_epi16(codes, 6), mask));
}

// floor(byte / 3) in every byte: the products need 16 bits, so even and odd bytes go apart.
[[maybe_unused]] inline __m256i third_of(__m256i bytes) {
  const __m256i low = _mm256_set1_epi16(0x00ff);
  const __m256i reciprocal = _mm256_set1_epi16(21846);  // ceil(2^16 / 3): exact below 2^15
  const __m256i even = _mm256_mulhi_epu16(_mm256_and_si256(bytes, low), reciprocal);
  const __m256i odd = _mm256_mulhi_epu16(_mm256_srli_epi16(bytes, 8), reciprocal);
  return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}

// Five digits of 32 base3 bytes to rows[0 .. 4].
[[maybe_unused]] inline void split_base3(__m256i rest, uint8_t* const rows[5]) {
  for (int j = 0; j < 4; ++j) {
    const __m256i third = third_of(rest);
    const __m256i thrice = _mm256_add_epi8(third, _mm256_add_epi8(third, third));
    store32(rows[j], _mm256_sub_epi8(rest, thrice));
    rest = third;
  }
  store32(rows[4], rest);
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_SIMD_AVX2_H
