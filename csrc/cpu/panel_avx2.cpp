// Panels for AVX2: one vector, held in two registers, x 4 activation rows. vpmaddubsw adds the
// products of two columns to int16; sums stay there for as long as they fit and are then widened.
#include "byte_panel.h"
#include "simd_avx2.h"

namespace bitimpl {
namespace {

// A pair of products is at most 2 * 2 * 128.
constexpr int64_t kNarrowSteps = 63;
static_assert(kNarrowSteps * 512 <= INT16_MAX, "int16 sums");

// sum += products of unsigned bytes u and signed bytes s, two to an int16. Assembly, because GCC 12
// keeps an accumulator of the intrinsics in memory.
inline void accumulate(__m256i& sum, __m256i u, __m256i s) {
  __m256i pairs;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(pairs) : "x"(u), "x"(s));
}

struct Avx2Panel : PlainSums {
  static constexpr int kVectors = 1;
  static constexpr int kTokens = 4;

  static int64_t least_vectors(const LinearTask&) { return 8; }

  static void two_bit(const uint8_t* bytes, int64_t n, uint8_t* rows) {
    const WholeStep step(bytes, n);
    for (int64_t k = 0; k < kStep; k += 32) {
      uint8_t* const to[4] = {rows + k, rows + kStep + k, rows + 2 * kStep + k, rows + 3 * kStep + k};
      split_two_bit(load32(step.bytes + k), to);
    }
  }

  static void base3(const uint8_t* bytes, int64_t n, uint8_t* rows) {
    const WholeStep step(bytes, n);
    for (int64_t k = 0; k < kStep; k += 32) {
      uint8_t* const to[5] = {rows + k, rows + kStep + k, rows + 2 * kStep + k, rows + 3 * kStep + k,
                              rows + 4 * kStep + k};
      split_base3(load32(step.bytes + k), to);
    }
  }

  static void bits(uint64_t word, uint8_t* row) {
    // Byte i of a half looks at bit i % 8 of byte i / 8.
    const __m256i source = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                            2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
    const __m256i two = _mm256_set1_epi8(2);
    for (int half = 0; half < 2; ++half) {
      const __m256i word32 = _mm256_set1_epi32(static_cast<int32_t>(word >> (32 * half)));
      const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(word32, source), bit);
      store32(row + 32 * half, _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), two));
    }
  }

  static void interleave(const uint8_t* rows, int64_t words, uint8_t* out) {
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t first = 0; first < words; first += 8) {
        __m256i in[8], vectors[8];
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) in[r] = load32(rows + (half * 8 + r) * kStep + 4 * first);
        transpose_words(in, vectors);
        for (int64_t w = 0; w < 8 && first + w < words; ++w) {
          store32(out + 64 * (first + w) + 32 * half, vectors[w]);
        }
      }
    }
  }

  template <int V, int T>
  static void multiply(const uint8_t* panel, int64_t /*vector_bytes*/, const int8_t* q, int64_t stride,
                       int64_t steps, int32_t* sums) {
    static_assert(V == 1, "one vector at a time");
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i* out = reinterpret_cast<__m256i*>(sums);
    for (int i = 0; i < 2 * T; ++i) out[i] = _mm256_setzero_si256();
    for (int64_t begin = 0; begin < steps; begin += kNarrowSteps) {
      const int64_t run = steps - begin < kNarrowSteps ? steps - begin : kNarrowSteps;
      __m256i narrow[2 * T];
      multiply_narrow<T>(panel + 64 * begin, q + 4 * begin, stride, run, narrow);
      for (int i = 0; i < 2 * T; ++i) out[i] = _mm256_add_epi32(out[i], _mm256_madd_epi16(narrow[i], ones));
    }
  }

  // At most kNarrowSteps steps, in int16. A function of its own, as in the AVX-512 file.
  template <int T>
  __attribute__((noinline)) static void multiply_narrow(const uint8_t* panel, const int8_t* q,
                                                        int64_t stride, int64_t steps, __m256i* sums) {
    __m256i sum[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; ++s, panel += 64, q += 4) {
      const __m256i low = load32(panel);
      const __m256i high = load32(panel + 32);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256i four = broadcast4(q + t * stride);
        accumulate(sum[t][0], low, four);
        accumulate(sum[t][1], high, four);
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      sums[2 * t] = sum[t][0];
      sums[2 * t + 1] = sum[t][1];
    }
  }
};

}  // namespace

bool panel_serves_avx2(const LinearTask& task) { return panel_serves<Avx2Panel>(task); }

int64_t panel_scratch_avx2(const LinearTask& task) {
  return PanelLayout<BytePanel<Avx2Panel>>(task).bytes;
}

void panel_avx2(const LinearTask& task, const Tile& tile) {
  run_panel<BytePanel<Avx2Panel>>(task, tile);
}

}  // namespace bitimpl
