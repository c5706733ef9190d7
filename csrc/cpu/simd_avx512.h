// AVX-512 pieces that the kernels share: prefetch, reading a step, decoding base 3, transposing
// lanes, bringing scales into lane order, writing results. Include from *_avx512.cpp only.
#ifndef BITIMPL_CPU_SIMD_AVX512_H
#define BITIMPL_CPU_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "epilogue.h"
#include "kernels.h"
#include "ternary_layout.h"

// For loops over accumulators: they live in registers only where every index is a constant.
#define BITIMPL_UNROLL _Pragma("GCC unroll 16")

namespace bitimpl {
namespace {

// Bytes between a load of codes and its prefetch: about what RAM delivers in its own latency.
constexpr int64_t kPrefetch = 8192;

// base3 byte below 128 -> its digits 0..3 as a two_bit byte; digit 4 is recovered from sums (see
// ternary_avx512.cpp) or by comparison.
struct DigitTable {
  alignas(64) uint8_t bytes[128];
};

constexpr DigitTable make_digit_table() {
  DigitTable table = {};
  for (int value = 0; value < 128; ++value) {
    table.bytes[value] = static_cast<uint8_t>(value % 3 | value / 3 % 3 << 2 | value / 9 % 3 << 4 |
                                              value / 27 % 3 << 6);
  }
  return table;
}

constexpr DigitTable kDigitTable = make_digit_table();

struct Base3Decoder {
  __m512i low, high, once, twice;

  Base3Decoder() {
    low = _mm512_load_si512(kDigitTable.bytes);
    high = _mm512_load_si512(kDigitTable.bytes + 64);
    once = _mm512_set1_epi8(81);
    twice = _mm512_set1_epi8(static_cast<char>(162));
  }

  // Digits 0..3 depend on the byte modulo 81 only: a difference below 0 wraps to more than the byte,
  // so that the least of the three is the remainder, and 128 entries of the table serve.
  __m512i two_bit(__m512i raw) const {
    const __m512i above = _mm512_min_epu8(_mm512_sub_epi8(raw, once), _mm512_sub_epi8(raw, twice));
    return _mm512_permutex2var_epi8(low, _mm512_min_epu8(raw, above), high);
  }
};

// sum += the products of unsigned bytes `u` and signed bytes `s`, four to a dword. This and add_words
// are assembly because GCC 12 copies or spills the accumulators of the intrinsics in tight loops.
inline void accumulate(__m512i& sum, __m512i u, __m512i s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
}

// sum += word, of 32 bits each.
inline void add_words(__m512i& sum, __m512i word) {
  asm("vpaddd %1, %0, %0" : "+v"(sum) : "v"(word));
}

// The four bytes at p in every dword.
inline __m512i broadcast4(const void* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// Rows 0 .. TOKENS - 1 of a matrix, every third one with a pointer of its own: few enough pointers to
// stay in registers.
template <int TOKENS>
struct TokenRows {
  static constexpr int kPointers = (TOKENS + 2) / 3;
  const uint8_t* base[kPointers];
  int64_t stride;

  TokenRows(const void* first, int64_t row_stride) : stride(row_stride) {
    BITIMPL_UNROLL
    for (int i = 0; i < kPointers; ++i) base[i] = static_cast<const uint8_t*>(first) + 3 * i * stride;
  }
  const uint8_t* at(int t) const { return base[t / 3] + (t % 3) * stride; }
  void advance(int64_t bytes) {
    BITIMPL_UNROLL
    for (int i = 0; i < kPointers; ++i) base[i] += bytes;
  }
};

inline __mmask64 first_bytes(int64_t n) {
  return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1;
}

// The bytes of row group g in a step of n <= 64 columns; zeros (digit 0, whose product is 0 for any
// activation) where there is no column or no group.
inline __m512i load_group(const uint8_t* step, int64_t groups, int64_t g, int64_t n) {
  if (g >= groups) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi8(first_bytes(n), step + g * n);
}

// out[q] holds 128-bit lane q of a[0..3] in its lanes 0..3.
inline void transpose_lanes(const __m512i a[4], __m512i out[4]) {
  const __m512i t0 = _mm512_shuffle_i64x2(a[0], a[1], 0x44);
  const __m512i t1 = _mm512_shuffle_i64x2(a[0], a[1], 0xee);
  const __m512i t2 = _mm512_shuffle_i64x2(a[2], a[3], 0x44);
  const __m512i t3 = _mm512_shuffle_i64x2(a[2], a[3], 0xee);
  out[0] = _mm512_shuffle_i64x2(t0, t2, 0x88);
  out[1] = _mm512_shuffle_i64x2(t0, t2, 0xdd);
  out[2] = _mm512_shuffle_i64x2(t1, t3, 0x88);
  out[3] = _mm512_shuffle_i64x2(t1, t3, 0xdd);
}

inline __m512i sum_of_transposed_lanes(const __m512i a[4]) {
  __m512i t[4];
  transpose_lanes(a, t);
  return _mm512_add_epi32(_mm512_add_epi32(t[0], t[1]), _mm512_add_epi32(t[2], t[3]));
}

// Lane order: dword j of lane g is row P * g + j of the block. In base3 the fifth rows, 5 * g + 4,
// come in a second register, each in all dwords of its lane.
template <bool BASE3>
inline __m512i main_rows() {
  const __m512i lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i dword = _mm512_set_epi32(3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0);
  const __m512i per_lane = _mm512_set1_epi32(Format<BASE3>::kRows);
  return _mm512_add_epi32(_mm512_mullo_epi32(lane, per_lane), dword);
}

inline __m512i fifth_rows() {
  return _mm512_set_epi32(19, 19, 19, 19, 14, 14, 14, 14, 9, 9, 9, 9, 4, 4, 4, 4);
}

// 16 x 16 words of 32 bits: word r of out[w] is word w of in[r].
inline void transpose_words(const __m512i* in, __m512i* out) {
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[4 * i + 0] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  // b[4 i + j]: rows 4 i .. 4 i + 3, words j, j + 4, j + 8, j + 12 in the four 128-bit lanes.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
    out[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    out[j + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    out[j + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    out[j + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
}

// n <= 16 scales at consecutive addresses, zeros after them.
inline __m512 load_scales(const LinearTask& task, int64_t at, int64_t n) {
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  if (task.scale_dtype == BITIMPL_F32) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(task.scales) + at);
  }
  const uint16_t* half = static_cast<const uint16_t*>(task.scales) + at;
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, half));
}

// Scales of one block and component for 16 segments at a time, in lane order.
template <bool BASE3>
struct ScaleWindow {
  static constexpr int kSegments = 16;
  __m512 main[kSegments];
  __m512 fifth[BASE3 ? kSegments : 1];

  void load(const LinearTask& task, const Block& block, int64_t component, int64_t first) {
    const int64_t left = task.segments - first;
    const int64_t count = left < kSegments ? left : kSegments;
    if (count > 1 && task.scale_group_stride == 1) {
      load_groups(task, block, component, first, count, main_rows<BASE3>(), main);
      if (BASE3) load_groups(task, block, component, first, count, fifth_rows(), fifth);
    } else {
      for (int64_t s = 0; s < count; ++s) load_rows(task, block, component, first + s, s);
    }
  }

 private:
  // One segment; rows are consecutive or share the scale in the usual case.
  void load_rows(const LinearTask& task, const Block& block, int64_t component, int64_t segment,
                 int64_t slot) {
    const int64_t at = component * task.scale_component_stride +
                       block.first_row * task.scale_row_stride + segment * task.scale_group_stride;
    __m512 low, high = _mm512_setzero_ps();
    if (task.scale_row_stride == 1) {
      low = load_scales(task, at, block.rows < 16 ? block.rows : 16);
      if (BASE3 && block.rows > 16) high = load_scales(task, at + 16, block.rows - 16);
    } else if (task.scale_row_stride == 0) {
      low = high = _mm512_set1_ps(scale_at(task, component, block.first_row, segment));
    } else {
      alignas(64) float values[32] = {};
      for (int64_t row = 0; row < block.rows; ++row) {
        values[row] = scale_at(task, component, block.first_row + row, segment);
      }
      low = _mm512_load_ps(values);
      high = _mm512_load_ps(values + 16);
    }
    main[slot] = BASE3 ? _mm512_permutex2var_ps(low, main_rows<BASE3>(), high) : low;
    if (BASE3) fifth[slot] = _mm512_permutex2var_ps(low, fifth_rows(), high);
  }

  // Consecutive segments: a register of segments for each row, turned around.
  static void load_groups(const LinearTask& task, const Block& block, int64_t component,
                          int64_t first, int64_t count, __m512i row_of_lane, __m512* out) {
    alignas(64) int32_t rows[16];
    _mm512_store_si512(rows, row_of_lane);
    __m512i by_row[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t row = block.first_row + rows[i];
      const int64_t at = component * task.scale_component_stride + row * task.scale_row_stride + first;
      by_row[i] = rows[i] < block.rows ? _mm512_castps_si512(load_scales(task, at, count))
                                       : _mm512_setzero_si512();
    }
    __m512i by_segment[16];
    transpose_words(by_row, by_segment);
    for (int i = 0; i < 16; ++i) out[i] = _mm512_castsi512_ps(by_segment[i]);
  }
};

// float(256 * hi + lo), exact in float64 and rounded once.
inline __m512 combine_planes(__m512i hi, __m512i lo) {
  const __m512d scale = _mm512_set1_pd(256.0);
  __m256 half[2];
  for (int i = 0; i < 2; ++i) {
    const __m256i h = i == 0 ? _mm512_castsi512_si256(hi) : _mm512_extracti64x4_epi64(hi, 1);
    const __m256i l = i == 0 ? _mm512_castsi512_si256(lo) : _mm512_extracti64x4_epi64(lo, 1);
    const __m512d high = _mm512_mul_pd(_mm512_cvtepi32_pd(h), scale);
    half[i] = _mm512_cvtpd_ps(_mm512_add_pd(high, _mm512_cvtepi32_pd(l)));
  }
  return _mm512_insertf32x8(_mm512_castps256_ps512(half[0]), half[1], 1);
}

// bf16_from_float of every lane.
inline __m256i bf16_from_floats(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i top = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const __m512i quiet = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
}

// store_rows of epilogue.h for count <= 16 rows in a register.
inline void store_vector(const LinearTask& task, int64_t token, int64_t row_begin, int64_t count,
                         __m512 t) {
  const __mmask16 present = static_cast<__mmask16>((1u << count) - 1);
  __m512 value = t;
  if (task.x.scale != nullptr) value = _mm512_mul_ps(t, _mm512_set1_ps(task.x.scale[token]));
  if (task.bias != nullptr) {
    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(present, task.bias + row_begin));
  }
  const int64_t at = token * task.y_stride + row_begin;
  if (task.y_dtype == BITIMPL_F32) {
    _mm512_mask_storeu_ps(static_cast<float*>(task.y) + at, present, value);
    return;
  }
  if (task.y_dtype == BITIMPL_SIGNS) {
    const auto load = [&](const float* from) { return _mm512_maskz_loadu_ps(present, from + row_begin); };
    const __mmask16 least = _mm512_mask_cmp_ps_mask(present, value, load(task.least), _CMP_GE_OQ);
    const __mmask16 finite = _mm512_mask_cmp_ps_mask(least, value, load(task.most), _CMP_LE_OQ);
    const __mmask16 above = _mm512_mask_cmp_ps_mask(present, value, load(task.lower), _CMP_GE_OQ);
    const __mmask16 bits = _mm512_mask_cmp_ps_mask(above, value, load(task.upper), _CMP_LE_OQ);
    store_bits(static_cast<uint8_t*>(task.y), at, count, bits);
    if (finite != present) mark_not_finite(task.y_scale + token);
    return;
  }
  const __m256i halves = task.y_dtype == BITIMPL_BF16
                             ? bf16_from_floats(value)
                             : _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(task.y) + at, present, halves);
}

// Results of a block, from lane order.
template <bool BASE3>
inline void store_block(const LinearTask& task, int64_t token, const Block& block, __m512 main,
                        __m512 fifth) {
  if (!BASE3) {
    store_vector(task, token, block.first_row, block.rows, main);
    return;
  }
  // Row r of the block is dword r % 5 of lane r / 5, or that lane of `fifth` (index 16 and up).
  const __m512i low = _mm512_set_epi32(12, 24, 11, 10, 9, 8, 20, 7, 6, 5, 4, 16, 3, 2, 1, 0);
  const __m512i high = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 28, 15, 14, 13);
  const int64_t first = block.rows < 16 ? block.rows : 16;
  store_vector(task, token, block.first_row, first, _mm512_permutex2var_ps(main, low, fifth));
  if (block.rows > 16) {
    const __m512 rest = _mm512_permutex2var_ps(main, high, fifth);
    store_vector(task, token, block.first_row + 16, block.rows - 16, rest);
  }
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_SIMD_AVX512_H
