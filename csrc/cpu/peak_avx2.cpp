// What the arithmetic units of AVX2 can do at most; see peak_avx512.cpp. Bits are counted by nibble
// lookup, as in binary_linear_avx2.cpp.
#include <immintrin.h>

#include "kernels.h"

namespace bitimpl {
namespace {

constexpr int kInt8Chains = 8;
constexpr int kSignChains = 4;

}  // namespace

int64_t int8_peak_avx2(int64_t turns) {
  __m256i sums[kInt8Chains], pairs;
#pragma GCC unroll 8
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  const __m256i u = _mm256_set1_epi8(1), s = _mm256_set1_epi8(-1);
  for (int64_t i = 0; i < turns; ++i) {
#pragma GCC unroll 8
    for (auto& sum : sums) {
      asm volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                   : "+x"(sum), "=&x"(pairs)
                   : "x"(u), "x"(s));
    }
  }
  return turns * kInt8Chains * 32;
}

int64_t sign_peak_avx2(int64_t turns) {
  __m256i sums[kSignChains], low, high;
#pragma GCC unroll 4
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  const __m256i a = _mm256_set1_epi8(0x35), b = _mm256_set1_epi8(0x53);
  const __m256i nibble = _mm256_set1_epi8(15), counts = _mm256_set1_epi8(2);
  for (int64_t i = 0; i < turns; ++i) {
#pragma GCC unroll 4
    for (auto& sum : sums) {
      asm volatile(
          "vpxor %4, %3, %1\n\tvpsrlw $4, %1, %2\n\tvpand %5, %1, %1\n\tvpand %5, %2, %2\n\t"
          "vpshufb %1, %6, %1\n\tvpshufb %2, %6, %2\n\tvpaddb %2, %1, %1\n\tvpaddb %1, %0, %0"
          : "+x"(sum), "=&x"(low), "=&x"(high)
          : "x"(a), "x"(b), "x"(nibble), "x"(counts));
    }
  }
  return turns * kSignChains * 256;
}

}  // namespace bitimpl
