// Panels of bits for AVX2: one vector, held in two registers, x 4 activation rows. Bits are counted by
// nibbles, in bytes for as long as they hold the counts.
#include "bit_panel.h"
#include "simd_avx2.h"

namespace bitimpl {
namespace {

struct Avx2Bits : NarrowBits {
  // Bit BIT of every byte.
  template <int BIT>
  static uint32_t bits_of(__m256i bytes) {
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(bytes, 7 - BIT)));
  }

  // Digit 1 is zero, digit 2 is +1.
  template <int PLACE>
  static void keep(__m256i digits, int64_t k, uint64_t* nonzero, uint64_t* signs) {
    *nonzero |= static_cast<uint64_t>(~bits_of<PLACE>(digits)) << k;
    *signs |= static_cast<uint64_t>(bits_of<PLACE + 1>(digits)) << k;
  }

  static void two_bit(const uint8_t* bytes, int64_t n, uint64_t* nonzero, uint64_t* signs) {
    const WholeStep step(bytes, n);
    for (int j = 0; j < 4; ++j) nonzero[j] = signs[j] = 0;
    for (int64_t k = 0; k < kStep; k += 32) {
      const __m256i digits = load32(step.bytes + k);
      keep<0>(digits, k, nonzero, signs);
      keep<2>(digits, k, nonzero + 1, signs + 1);
      keep<4>(digits, k, nonzero + 2, signs + 2);
      keep<6>(digits, k, nonzero + 3, signs + 3);
    }
  }

  static void base3(const uint8_t* bytes, int64_t n, uint64_t* nonzero, uint64_t* signs) {
    const WholeStep step(bytes, n);
    for (int j = 0; j < 5; ++j) nonzero[j] = signs[j] = 0;
    for (int64_t k = 0; k < kStep; k += 32) {
      __m256i rest = load32(step.bytes + k);
      for (int j = 0; j < 4; ++j) {
        const __m256i third = third_of(rest);
        const __m256i thrice = _mm256_add_epi8(third, _mm256_add_epi8(third, third));
        keep<0>(_mm256_sub_epi8(rest, thrice), k, nonzero + j, signs + j);
        rest = third;
      }
      keep<0>(rest, k, nonzero + 4, signs + 4);
    }
  }

  template <Product PRODUCT, int V, int T>
  static void multiply(const uint8_t* panel, int64_t /*vector_bytes*/, const BitTokens& x, int64_t words,
                       int32_t* sums) {
    static_assert(V == 1, "one vector at a time");
    using Kernel = BitPanel<Avx2Bits, PRODUCT>;
    __m256i differ[2 * T];
    for (auto& sum : differ) sum = _mm256_setzero_si256();
    for (int64_t begin = 0; begin < words; begin += kNarrowWords) {
      const int64_t run = words - begin < kNarrowWords ? words - begin : kNarrowWords;
      const int64_t at = 4 * begin;
      const BitTokens part = {x.signs + at, Kernel::kCounts ? nullptr : x.nonzero + at, x.stride};
      __m256i narrow[2 * T];
      count_narrow<PRODUCT, T>(panel + Kernel::kHeaderBytes + begin * Kernel::kStepBytes, part, run, narrow);
      for (int i = 0; i < 2 * T; ++i) {
        const __m256i pairs = _mm256_maddubs_epi16(narrow[i], _mm256_set1_epi8(1));
        differ[i] = _mm256_add_epi32(differ[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      }
    }
    for (int t = 0; t < T; ++t) {
      for (int half = 0; half < 2; ++half) {
        const __m256i ones = Kernel::kCounts ? load32(panel + 32 * half) : _mm256_setzero_si256();
        const __m256i twice = _mm256_slli_epi32(differ[2 * t + half], 1);
        store32(sums + t * kPanelLanes + 8 * half, _mm256_sub_epi32(ones, twice));
      }
    }
  }

  static __m256i count_bytes(__m256i bits) {
    const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(bits, nibble));
    const __m256i high =
        _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble));
    return _mm256_add_epi8(low, high);
  }

  // At most kNarrowWords words, in bytes. A function of its own, as in the AVX-512 file.
  template <Product PRODUCT, int T>
  __attribute__((noinline)) static void count_narrow(const uint8_t* step, const BitTokens& x, int64_t words,
                                                     __m256i* counts) {
    using Kernel = BitPanel<Avx2Bits, PRODUCT>;
    __m256i count[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) count[t][0] = count[t][1] = _mm256_setzero_si256();
    const uint8_t* signs = x.signs;
    const uint8_t* nonzero = x.nonzero;
    for (int64_t w = 0; w < words; ++w, step += Kernel::kStepBytes) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256i xs = broadcast4(signs + 4 * w + t * x.stride);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const uint8_t* from = step + 32 * half;
          const __m256i ws = load32(from + Kernel::kStepBytes - Kernel::kPlaneBytes);
          const __m256i present = Kernel::kTernary ? load32(from) : broadcast4(nonzero + 4 * w + t * x.stride);
          const __m256i differ = _mm256_and_si256(present, _mm256_xor_si256(ws, xs));
          count[t][half] = _mm256_add_epi8(count[t][half], count_bytes(differ));
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      counts[2 * t] = count[t][0];
      counts[2 * t + 1] = count[t][1];
    }
  }
};

}  // namespace

bool takes_bits_avx2(const LinearTask& task) { return bits_serve<Avx2Bits>(task); }

int64_t bit_panel_scratch_avx2(const LinearTask& task) { return bit_panel_scratch<Avx2Bits>(task); }

void bit_panel_avx2(const LinearTask& task, const Tile& tile) { run_bit_panel<Avx2Bits>(task, tile); }

}  // namespace bitimpl
