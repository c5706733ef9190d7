// What the arithmetic units of AVX-512 can do at most: the innermost instructions of the kernels on
// registers, nothing loaded. Volatile, so that equal instructions are not made one.
#include <immintrin.h>

#include "kernels.h"

namespace bitimpl {
namespace {

constexpr int kChains = 12;  // independent sums: more than latency times rate

}  // namespace

int64_t int8_peak_avx512(int64_t turns) {
  __m512i sums[kChains];
#pragma GCC unroll 12
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const __m512i u = _mm512_set1_epi8(1), s = _mm512_set1_epi8(-1);
  for (int64_t i = 0; i < turns; ++i) {
#pragma GCC unroll 12
    for (auto& sum : sums) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  }
  return turns * kChains * 64;
}

int64_t sign_peak_avx512(int64_t turns) {
  __m512i sums[kChains], differ[kChains];
#pragma GCC unroll 12
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi8(0x35), b = _mm512_set1_epi8(0x53);
  for (int64_t i = 0; i < turns; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      asm volatile("vpxord %2, %1, %0" : "=v"(differ[c]) : "v"(a), "v"(b));
      asm volatile("vpopcntd %0, %0" : "+v"(differ[c]));
      asm volatile("vpaddd %1, %0, %0" : "+v"(sums[c]) : "v"(differ[c]));
    }
  }
  return turns * kChains * 512;
}

}  // namespace bitimpl
