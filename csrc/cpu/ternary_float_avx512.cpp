// Ternary weights times float activations for AVX-512, straight from the packed bytes.
//
// Sixteen bytes widen to sixteen dwords; a permute that reads the low bits of each dword as an
// index into (-1, 0, +1, -) turns digit j into float weights for 16 columns of a row, without
// masking; then one fused multiply-add a token. base3 bytes first go through the digit table, and
// digit 4 is read off by comparison: >= 81 is 1 or more, >= 162 is 2.
#include "simd_avx512.h"

namespace bitimpl {

void ternary_float_avx512(const LinearTask& task, const Tile& tile);

namespace {

// Weights of 16 columns of row j of a group, from its dwords: digits 0..3 as two_bit bits, and the
// base3 byte itself.
struct WeightReader {
  __m512 table;
  __m512 zero, one, minus_one;

  WeightReader() {
    // The index has 4 bits; the upper two belong to the next digit and must not matter.
    table = _mm512_broadcast_f32x4(_mm_set_ps(0.0f, 1.0f, 0.0f, -1.0f));
    zero = _mm512_setzero_ps();
    one = _mm512_set1_ps(1.0f);
    minus_one = _mm512_set1_ps(-1.0f);
  }

  __m512 two_bit(__m512i dwords, int j) const {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(dwords, static_cast<unsigned>(2 * j)), table);
  }

  __m512 fifth(__m512i raw) const {
    const __mmask16 some = _mm512_cmpge_epi32_mask(raw, _mm512_set1_epi32(81));
    const __mmask16 two = _mm512_cmpge_epi32_mask(raw, _mm512_set1_epi32(162));
    return _mm512_mask_mov_ps(_mm512_mask_mov_ps(minus_one, some, zero), two, one);
  }
};

// dots[i][r]: row r of one group of the block times token i over a segment.
template <bool BASE3, int T>
void group_dots(const uint8_t* codes, int64_t groups, int64_t group, const float* x,
                int64_t x_stride, int64_t columns, float dots[T][5]) {
  constexpr int kRows = Format<BASE3>::kRows;
  const Base3Decoder decoder;
  const WeightReader weights;
  __m512 sums[kRows][T];
  BITIMPL_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITIMPL_UNROLL
    for (int i = 0; i < T; ++i) sums[r][i] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < columns; k += kStep) {
    const int64_t n = columns - k < kStep ? columns - k : kStep;
    if (group == 0) {
      // The groups of a block share its lines in turn: the first walk fetches for all.
      for (int64_t line = 0; line < groups; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(codes) + kPrefetch + 64 * line, _MM_HINT_T0);
      }
    }
    const __m512i raw = _mm512_maskz_loadu_epi8(first_bytes(n), codes + group * n);
    codes += groups * n;
    alignas(64) uint8_t raw_bytes[kStep], digit_bytes[kStep];
    _mm512_store_si512(raw_bytes, raw);
    _mm512_store_si512(digit_bytes, BASE3 ? decoder.two_bit(raw) : raw);
    for (int64_t q = 0; q < n; q += 16) {
      const __mmask16 present = static_cast<__mmask16>(first_bytes(n - q));
      __m512 activations[T];
      BITIMPL_UNROLL
      for (int i = 0; i < T; ++i) {
        activations[i] = _mm512_maskz_loadu_ps(present, x + i * x_stride + k + q);
      }
      const __m512i digits =
          _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(digit_bytes + q)));
      BITIMPL_UNROLL
      for (int r = 0; r < 4; ++r) {
        const __m512 weight = weights.two_bit(digits, r);
        BITIMPL_UNROLL
        for (int i = 0; i < T; ++i) sums[r][i] = _mm512_fmadd_ps(weight, activations[i], sums[r][i]);
      }
      if constexpr (BASE3) {
        const __m512i bytes =
            _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(raw_bytes + q)));
        const __m512 weight = weights.fifth(bytes);
        BITIMPL_UNROLL
        for (int i = 0; i < T; ++i) sums[4][i] = _mm512_fmadd_ps(weight, activations[i], sums[4][i]);
      }
    }
  }
  BITIMPL_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BITIMPL_UNROLL
    for (int i = 0; i < T; ++i) dots[i][r] = _mm512_reduce_add_ps(sums[r][i]);
  }
}

template <bool BASE3, int T>
void run_tokens(const LinearTask& task, const Tile& tile, int64_t first) {
  constexpr int kRows = Format<BASE3>::kRows;
  const float* x = task.x.values + first * task.x.value_stride;
  for (int64_t index = tile.block_begin; index < tile.block_end; ++index) {
    const Block block = block_at<BASE3>(task, index);
    float t[T][Format<BASE3>::kBlockRows] = {};
    for (int64_t c = 0; c < task.components; ++c) {
      for (int64_t s = 0; s < task.segments; ++s) {
        const uint8_t* codes = segment_codes(task, block, c, s);
        for (int64_t group = 0; group < block.groups; ++group) {
          float dots[T][5];
          group_dots<BASE3, T>(codes, block.groups, group, x + s * task.segment,
                               task.x.value_stride, segment_columns(task, s), dots);
          for (int r = 0; r < kRows; ++r) {
            const int64_t row = group * kRows + r;
            if (row >= block.rows) break;
            const float scale = scale_at(task, c, block.first_row + row, s);
            for (int i = 0; i < T; ++i) t[i][row] += scale * dots[i][r];
          }
        }
      }
    }
    for (int i = 0; i < T; ++i) store_rows(task, first + i, block.first_row, block.rows, t[i]);
  }
}

template <bool BASE3>
void run_tile(const LinearTask& task, const Tile& tile) {
  int64_t first = tile.token_begin;
  for (; first + 4 <= tile.token_end; first += 4) run_tokens<BASE3, 4>(task, tile, first);
  for (; first + 2 <= tile.token_end; first += 2) run_tokens<BASE3, 2>(task, tile, first);
  for (; first < tile.token_end; ++first) run_tokens<BASE3, 1>(task, tile, first);
}

}  // namespace

void ternary_float_avx512(const LinearTask& task, const Tile& tile) {
  if (task.format == BITIMPL_BASE3) {
    run_tile<true>(task, tile);
  } else {
    run_tile<false>(task, tile);
  }
}

}  // namespace bitimpl
