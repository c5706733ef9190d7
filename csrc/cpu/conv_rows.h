// Inner loops of convolutions, compiled for every instruction set: plain loops that compilers turn
// into vector code, and by hand what they do not (sums of bytes on x86). Include from table.h only.
#ifndef BITIMPL_CPU_CONV_ROWS_H
#define BITIMPL_CPU_CONV_ROWS_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace bitimpl {
namespace {

int32_t sum_row(const int8_t* q, int64_t n) {
  int32_t sum = 0;
#if defined(__AVX512VNNI__)
  __m512i sums = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 64) {
    sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), _mm512_loadu_si512(q + i));
  }
  sum = _mm512_reduce_add_epi32(sums);
#elif defined(__AVX2__)
  __m256i sums = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + i));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  int32_t lanes[8];
  memcpy(lanes, &sums, sizeof lanes);
  for (int i = 0; i < 8; ++i) sum += lanes[i];
#else
  for (int64_t i = 0; i < n; ++i) sum += q[i];
#endif
  return sum;
}

void sum_int8(const int8_t* q, int64_t stride, int64_t n, int64_t rows, int32_t* sums) {
  for (int64_t i = 0; i < rows; ++i) sums[i] = sum_row(q + i * stride, n);
}

// Ones among `count` bits from bit `first` on; reads only bytes that hold one of them.
int64_t count_ones(const uint8_t* bits, int64_t first, int64_t count) {
  int64_t ones = 0;
  if (first % 8 == 0) {
    for (; count >= 64; first += 64, count -= 64) {
      uint64_t word;
      memcpy(&word, bits + first / 8, sizeof word);
      ones += __builtin_popcountll(word);
    }
  }
  while (count > 0) {
    const int64_t shift = first % 8;
    const int64_t whole = 64 - (shift == 0 ? 0 : 8);
    const int64_t n = count < whole ? count : whole;
    uint64_t word = 0;
    memcpy(&word, bits + first / 8, static_cast<size_t>((shift + n + 7) / 8));
    word >>= shift;
    if (n < 64) word &= (uint64_t{1} << n) - 1;
    ones += __builtin_popcountll(word);
    first += n;
    count -= n;
  }
  return ones;
}

// Bytes of a register whose halves can be interleaved in one instruction.
#if defined(__AVX512F__)
constexpr int kRegister = 64;
#else
constexpr int kRegister = 16;
#endif

// A square of elements, a register of BYTES bytes a row. Interleaving rows r and r + half of the square
// into rows 2 r and 2 r + 1 moves the uppermost bit of the row number below the column number's:
// as many times as a number has bits, and rows and columns have changed places.
template <class Element, int BYTES>
struct Square {
  static constexpr int kSide = BYTES / sizeof(Element);
  typedef Element Row __attribute__((vector_size(BYTES)));

  static void turn(const Element* in, int64_t in_stride, Element* out, int64_t out_stride) {
    Row rows[kSide], next[kSide];
    for (int r = 0; r < kSide; ++r) memcpy(rows + r, in + r * in_stride, sizeof(Row));
    for (int side = 1; side < kSide; side *= 2) {
      for (int r = 0; r < kSide / 2; ++r) {
        next[2 * r] = interleave<0>(rows[r], rows[r + kSide / 2]);
        next[2 * r + 1] = interleave<kSide / 2>(rows[r], rows[r + kSide / 2]);
      }
      for (int r = 0; r < kSide; ++r) rows[r] = next[r];
    }
    for (int r = 0; r < kSide; ++r) memcpy(out + r * out_stride, rows + r, sizeof(Row));
  }

 private:
  // Elements FIRST .. FIRST + half of a and b in turns.
  template <int FIRST>
  static Row interleave(Row a, Row b) {
    Row mask;
    for (int i = 0; i < kSide; ++i) mask[i] = static_cast<Element>(FIRST + i / 2 + i % 2 * kSide);
#if defined(__clang__)
    Row out;
    for (int i = 0; i < kSide; ++i) out[i] = i % 2 == 0 ? a[mask[i]] : b[mask[i] - kSide];
    return out;
#else
    return __builtin_shuffle(a, b, mask);
#endif
  }
};

template <class Element, int BYTES>
void transpose_elements(const Element* in, int64_t in_stride, int64_t rows, int64_t cols,
                        Element* out, int64_t out_stride) {
  constexpr int64_t kSide = Square<Element, BYTES>::kSide;
  for (int64_t c = 0; c < cols; c += kSide) {
    const int64_t wide = cols - c < kSide ? cols - c : kSide;
    for (int64_t r = 0; r < rows; r += kSide) {
      const int64_t high = rows - r < kSide ? rows - r : kSide;
      const Element* from = in + r * in_stride + c;
      Element* to = out + c * out_stride + r;
      if (wide == kSide && high == kSide) {
        Square<Element, BYTES>::turn(from, in_stride, to, out_stride);
        continue;
      }
      for (int64_t i = 0; i < wide; ++i) {
        for (int64_t j = 0; j < high; ++j) to[i * out_stride + j] = from[j * in_stride + i];
      }
    }
  }
}

void transpose(const void* in, int64_t in_stride, int64_t rows, int64_t cols, void* out,
               int64_t out_stride, int64_t element_bytes) {
  if (element_bytes == 1) {
    transpose_elements<uint8_t, 16>(static_cast<const uint8_t*>(in), in_stride, rows, cols,
                       static_cast<uint8_t*>(out), out_stride);
  } else if (element_bytes == 2) {
    transpose_elements<uint16_t, 16>(static_cast<const uint16_t*>(in), in_stride, rows, cols,
                       static_cast<uint16_t*>(out), out_stride);
  } else {
    transpose_elements<uint32_t, kRegister>(static_cast<const uint32_t*>(in), in_stride, rows, cols,
                       static_cast<uint32_t*>(out), out_stride);
  }
}

// Swaps the upper right with the lower left quarter of every square of 2 * HALF bits on the
// diagonal blocks.
template <int HALF>
void swap_quarters(uint64_t* words) {
  constexpr uint64_t kLow = ~uint64_t{0} / ((uint64_t{1} << HALF) + 1);
  for (int first = 0; first < 64; first += 2 * HALF) {
    for (int i = first; i < first + HALF; ++i) {
      const uint64_t swapped = ((words[i] >> HALF) ^ words[i + HALF]) & kLow;
      words[i + HALF] ^= swapped;
      words[i] ^= swapped << HALF;
    }
  }
}

void transpose_bits(const uint64_t in[64], uint64_t out[64]) {
  memcpy(out, in, 64 * sizeof(uint64_t));
  swap_quarters<32>(out);
  swap_quarters<16>(out);
  swap_quarters<8>(out);
  swap_quarters<4>(out);
  swap_quarters<2>(out);
  swap_quarters<1>(out);
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_CONV_ROWS_H
