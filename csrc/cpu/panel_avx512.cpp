// Panels for AVX-512 with VNNI: 2 vectors x 12 activation rows in 24 accumulators, 2 loads of weights
// and 12 broadcasts for 24 multiplications.
#include "byte_panel.h"
#include "panel_avx512.h"

namespace bitimpl {
namespace {

struct Avx512Panel : Avx512Sums {
  static constexpr int kVectors = 2;
  static constexpr int kTokens = 12;

  // Below, the kernels that decode for each few activation rows are faster: two_bit's for longest,
  // its decoding is a mask. Groups add to what those do for each row.
  static int64_t least_vectors(const LinearTask& task) {
    if (task.segments > 1) return 24;
    return task.format == BITIMPL_TWO_BIT ? 96 : 48;
  }

  static void split(__m512i digits, uint8_t* rows) {
    const __m512i three = _mm512_set1_epi8(3);
    _mm512_store_si512(rows, _mm512_and_si512(digits, three));
    _mm512_store_si512(rows + kStep, _mm512_and_si512(_mm512_srli_epi16(digits, 2), three));
    _mm512_store_si512(rows + 2 * kStep, _mm512_and_si512(_mm512_srli_epi16(digits, 4), three));
    _mm512_store_si512(rows + 3 * kStep, _mm512_and_si512(_mm512_srli_epi16(digits, 6), three));
  }

  static void two_bit(const uint8_t* bytes, int64_t n, uint8_t* rows) {
    split(_mm512_maskz_loadu_epi8(first_bytes(n), bytes), rows);
  }

  static void base3(const uint8_t* bytes, int64_t n, uint8_t* rows) {
    const Base3Decoder decoder;
    const __m512i raw = _mm512_maskz_loadu_epi8(first_bytes(n), bytes);
    split(decoder.two_bit(raw), rows);
    const __m512i one = _mm512_set1_epi8(1);
    const __mmask64 ones = _mm512_cmpge_epu8_mask(raw, _mm512_set1_epi8(81));
    const __mmask64 twos = _mm512_cmpge_epu8_mask(raw, _mm512_set1_epi8(static_cast<char>(162)));
    const __m512i fifth = _mm512_maskz_mov_epi8(ones, one);
    _mm512_store_si512(rows + 4 * kStep, _mm512_mask_add_epi8(fifth, twos, fifth, one));
  }

  static void bits(uint64_t word, uint8_t* row) {
    _mm512_store_si512(row, _mm512_maskz_mov_epi8(word, _mm512_set1_epi8(2)));
  }

  static void interleave(const uint8_t* rows, int64_t words, uint8_t* out) {
    __m512i in[16], vectors[16];
    BITIMPL_UNROLL
    for (int r = 0; r < 16; ++r) in[r] = _mm512_load_si512(rows + r * kStep);
    transpose_words(in, vectors);
    if (words == 16) {
      BITIMPL_UNROLL
      for (int w = 0; w < 16; ++w) _mm512_store_si512(out + 64 * w, vectors[w]);
    } else {
      for (int64_t w = 0; w < words; ++w) _mm512_store_si512(out + 64 * w, vectors[w]);
    }
  }

  // A function of its own, so that nothing but the accumulators competes for registers; every third
  // activation row has a pointer, the two after it a multiple of the stride.
  template <int V, int T>
  __attribute__((noinline)) static void multiply(const uint8_t* panel, int64_t vector_bytes,
                                                 const int8_t* q, int64_t stride, int64_t steps,
                                                 int32_t* sums) {
    TokenRows<T> x(q, stride);
    __m512i sum[V][T];
    BITIMPL_UNROLL
    for (int v = 0; v < V; ++v) {
      BITIMPL_UNROLL
      for (int t = 0; t < T; ++t) sum[v][t] = _mm512_setzero_si512();
    }
    for (int64_t s = 0; s < steps; ++s, panel += 64) {
      __m512i weights[V];
      BITIMPL_UNROLL
      for (int v = 0; v < V; ++v) weights[v] = _mm512_load_si512(panel + v * vector_bytes);
      BITIMPL_UNROLL
      for (int t = 0; t < T; ++t) {
        const __m512i four = broadcast4(x.at(t));
        BITIMPL_UNROLL
        for (int v = 0; v < V; ++v) accumulate(sum[v][t], weights[v], four);
      }
      x.advance(4);
    }
    BITIMPL_UNROLL
    for (int v = 0; v < V; ++v) {
      BITIMPL_UNROLL
      for (int t = 0; t < T; ++t) _mm512_store_si512(sums + (v * T + t) * kPanelLanes, sum[v][t]);
    }
  }
};

}  // namespace

bool panel_serves_avx512(const LinearTask& task) { return panel_serves<Avx512Panel>(task); }

int64_t panel_scratch_avx512(const LinearTask& task) {
  return PanelLayout<BytePanel<Avx512Panel>>(task).bytes;
}

void panel_avx512(const LinearTask& task, const Tile& tile) {
  run_panel<BytePanel<Avx512Panel>>(task, tile);
}

}  // namespace bitimpl
