// Panels of bits for AVX-512 with VPOPCNTDQ: 2 vectors x 12 activation rows in 24 accumulators, x 6 where
// a product needs two of them.
#include "bit_panel.h"
#include "panel_avx512.h"

namespace bitimpl {
namespace {

// Truth tables of vpternlogd for its operands a, b, c.
constexpr int kDiffer = 0x60;  // a & (b ^ c)

struct Avx512Bits : Avx512Sums {
  static constexpr int kVectors = 2;
  template <Product PRODUCT>
  static constexpr int kTokens = PRODUCT == Product::kBothTernary ? 6 : 12;

  static constexpr bool takes(Product) { return true; }
  // Decoding pays later the more there is to decode and the more counting costs.
  static int64_t least_tokens(Product product) {
    return product == Product::kBothTernary ? 12 : product == Product::kTernaryWeights ? 8 : kGemvTokens + 1;
  }

  static void split(__m512i digits, uint64_t* nonzero, uint64_t* signs) {
    BITIMPL_UNROLL
    for (int j = 0; j < 4; ++j) {
      nonzero[j] = _mm512_testn_epi8_mask(digits, _mm512_set1_epi8(static_cast<char>(1 << 2 * j)));
      signs[j] = _mm512_test_epi8_mask(digits, _mm512_set1_epi8(static_cast<char>(2 << 2 * j)));
    }
  }

  static void two_bit(const uint8_t* bytes, int64_t n, uint64_t* nonzero, uint64_t* signs) {
    split(_mm512_maskz_loadu_epi8(first_bytes(n), bytes), nonzero, signs);
  }

  static void base3(const uint8_t* bytes, int64_t n, uint64_t* nonzero, uint64_t* signs) {
    const Base3Decoder decoder;
    const __m512i raw = _mm512_maskz_loadu_epi8(first_bytes(n), bytes);
    split(decoder.two_bit(raw), nonzero, signs);
    const uint64_t ones = _mm512_cmpge_epu8_mask(raw, _mm512_set1_epi8(81));
    const uint64_t twos = _mm512_cmpge_epu8_mask(raw, _mm512_set1_epi8(static_cast<char>(162)));
    nonzero[4] = ~ones | twos;
    signs[4] = twos;
  }

  // A function of its own, so that nothing but the accumulators competes for registers.
  template <Product PRODUCT, int V, int T>
  __attribute__((noinline)) static void multiply(const uint8_t* panel, int64_t vector_bytes,
                                                 const BitTokens& x, int64_t words, int32_t* sums) {
    using Kernel = BitPanel<Avx512Bits, PRODUCT>;
    constexpr bool kBoth = PRODUCT == Product::kBothTernary;
    TokenRows<T> signs(x.signs, x.stride), nonzero(Kernel::kCounts ? x.signs : x.nonzero, x.stride);
    __m512i both[V][T], differ[V][T];
    BITIMPL_UNROLL
    for (int v = 0; v < V; ++v) {
      BITIMPL_UNROLL
      for (int t = 0; t < T; ++t) both[v][t] = differ[v][t] = _mm512_setzero_si512();
    }
    const uint8_t* step = panel + Kernel::kHeaderBytes;
    for (int64_t w = 0; w < words; ++w, step += Kernel::kStepBytes) {
      __m512i wn[V], ws[V];
      BITIMPL_UNROLL
      for (int v = 0; v < V; ++v) {
        const uint8_t* from = step + v * vector_bytes;
        if (Kernel::kTernary) wn[v] = _mm512_load_si512(from);
        ws[v] = _mm512_load_si512(from + Kernel::kStepBytes - Kernel::kPlaneBytes);
      }
      BITIMPL_UNROLL
      for (int t = 0; t < T; ++t) {
        const __m512i xs = broadcast4(signs.at(t));
        const __m512i xn = Kernel::kCounts ? _mm512_setzero_si512() : broadcast4(nonzero.at(t));
        BITIMPL_UNROLL
        for (int v = 0; v < V; ++v) {
          __m512i present = Kernel::kTernary ? wn[v] : xn;
          if (kBoth) {
            present = _mm512_and_si512(wn[v], xn);
            add_words(both[v][t], _mm512_popcnt_epi32(present));
          }
          const __m512i bits = _mm512_ternarylogic_epi32(present, ws[v], xs, kDiffer);
          add_words(differ[v][t], _mm512_popcnt_epi32(bits));
        }
      }
      signs.advance(4);
      if (!Kernel::kCounts) nonzero.advance(4);
    }
    BITIMPL_UNROLL
    for (int v = 0; v < V; ++v) {
      BITIMPL_UNROLL
      for (int t = 0; t < T; ++t) {
        const __m512i ones = Kernel::kCounts ? _mm512_load_si512(panel + v * vector_bytes) : both[v][t];
        const __m512i twice = _mm512_slli_epi32(differ[v][t], 1);
        _mm512_store_si512(sums + (v * T + t) * kPanelLanes, _mm512_sub_epi32(ones, twice));
      }
    }
  }
};

}  // namespace

bool takes_bits_avx512(const LinearTask& task) { return bits_serve<Avx512Bits>(task); }

int64_t bit_panel_scratch_avx512(const LinearTask& task) { return bit_panel_scratch<Avx512Bits>(task); }

void bit_panel_avx512(const LinearTask& task, const Tile& tile) { run_bit_panel<Avx512Bits>(task, tile); }

}  // namespace bitimpl
