// Binary kernels for AVX-512 (VNNI, VBMI, VPOPCNTDQ).
//
// Two blocks of 16 rows lie side by side in lanes. 512 columns of a block are 16 registers, one
// row each; a 16 x 16 transposition of their 32-bit words gives the panel: register w holds the
// bits of columns 32 w .. 32 w + 31, row r in lane r. From it
//   int8   vpmultishiftqb picks the four bits of columns 4 s .. 4 s + 3 into the four bytes of a
//          lane; vpdpbusd multiplies them with four activations broadcast to all rows
//   sign   word xor activation word, vpopcntd
//   float  the four bits index a table of 16 partial sums: vpermps
// One activation row at a time (M = 1) leaves nothing to amortise the transposition, so int8 then
// runs along the columns: bit j of byte i is column 8 i + j, so masking 64 bytes with 1 << j
// gives 2^j times the weights of 64 columns, which multiply activations regrouped to match. The
// factor 2^j is shifted away once per row.
#include <immintrin.h>

#include "binary_tile.h"
#include "simd_avx512.h"

namespace bitimpl {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kBlocks = 2;
constexpr int64_t kChunkBytes = 64;
constexpr int64_t kChunk = 512;  // columns

// Past the end of the weights is harmless: a prefetch never faults.
inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// `bytes` bytes of `rows` rows as a panel: word w of block b at out[w * kBlocks + b]. Absent rows
// and bytes past the end are zero.
void load_panel(const uint8_t* first, int64_t row_bytes, int64_t rows, int64_t bytes,
                __m512i* out) {
  for (int64_t offset = 0; offset < bytes; offset += kChunkBytes) {
    const int64_t left = bytes - offset;
    const __mmask64 mask = first_bytes(left);
    const int64_t words = ((left < kChunkBytes ? left : kChunkBytes) + 3) / 4;
    for (int64_t b = 0; b < kBlocks; ++b) {
      const int64_t present = rows - b * kLanes;
      const uint8_t* from = first + b * kLanes * row_bytes + offset;
      __m512i row[16], word[16];
      for (int64_t r = 0; r < kLanes; ++r) {
        row[r] = r < present ? _mm512_maskz_loadu_epi8(mask, from + r * row_bytes)
                             : _mm512_setzero_si512();
        // The same place in the rows that come next: 32 short streams are too many for hardware.
        prefetch(from + (r + kBlocks * kLanes) * row_bytes);
      }
      transpose_words(row, word);
      for (int64_t w = 0; w < words; ++w) _mm512_store_si512(out + w * kBlocks + b, word[w]);
    }
    out += words * kBlocks;
  }
}

// The loops over columns are functions of their own, so that nothing but accumulators competes for
// registers. out[t * kBlocks + b].
template <int TOKENS>
__attribute__((noinline)) void int8_rows(const __m512i* panel, int64_t cols, const void* q,
                                         int64_t stride, __m512i* out) {
  const __m512i ones = _mm512_set1_epi8(1);
  const __m512i four = _mm512_set1_epi8(4);
  // Byte t of the even (odd) row of a 64-bit lane starts at bit t (32 + t).
  const __m512i first_control = _mm512_set1_epi64(0x2322212003020100ll);
  TokenRows<TOKENS> x(q, stride);
  __m512i acc[TOKENS][kBlocks];
  BITIMPL_UNROLL
  for (int t = 0; t < TOKENS; ++t) acc[t][0] = acc[t][1] = _mm512_setzero_si512();
  for (int64_t k = 0; k < cols; k += 32, panel += kBlocks) {
    __m512i control = first_control;
    for (int64_t s = 0; s < 32; s += 4) {
      const __m512i w0 = _mm512_and_si512(_mm512_multishift_epi64_epi8(control, panel[0]), ones);
      const __m512i w1 = _mm512_and_si512(_mm512_multishift_epi64_epi8(control, panel[1]), ones);
      control = _mm512_add_epi8(control, four);
      BITIMPL_UNROLL
      for (int t = 0; t < TOKENS; ++t) {
        const __m512i bytes = broadcast4(x.at(t));
        accumulate(acc[t][0], w0, bytes);
        accumulate(acc[t][1], w1, bytes);
      }
      x.advance(4);
    }
  }
  BITIMPL_UNROLL
  for (int t = 0; t < TOKENS; ++t) {
    out[t * kBlocks] = acc[t][0];
    out[t * kBlocks + 1] = acc[t][1];
  }
}

// ---- one activation row, along the columns --------------------------------------------------

inline int64_t planes_bytes(int64_t segment) { return (segment + kChunk - 1) / kChunk * kChunk; }

// out: for each 512 columns eight registers, register j holding q[8 i + j] in byte i.
void regroup(const int8_t* q, int64_t cols, uint8_t* out) {
  // Eight bytes of each of eight columns octets -> eight octets of equal bit number.
  alignas(64) uint8_t order[64];
  for (int i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(i % 8 * 8 + i / 8);
  const __m512i control = _mm512_load_si512(order);
  const __m512i at = _mm512_setr_epi64(0, 8, 16, 24, 32, 40, 48, 56);
  alignas(64) uint64_t part[64];
  for (int64_t k = 0; k < cols; k += kChunk, out += kChunk) {
    for (int64_t i = 0; i < 8; ++i) {
      const int64_t left = cols - k - 64 * i;
      const __mmask64 mask = left <= 0 ? __mmask64{0} : first_bytes(left);
      const __m512i v = _mm512_maskz_loadu_epi8(mask, q + k + 64 * i);
      _mm512_store_si512(part + 8 * i, _mm512_permutexvar_epi8(control, v));
    }
    for (int64_t j = 0; j < 8; ++j)
      _mm512_storeu_si512(out + 64 * j, _mm512_i64gather_epi64(at, part + j, 8));
  }
}

// Sums of 2^j * (plus sum of plane j), j = 0 .. 7, to the plus sum of the row.
inline int32_t fold(const __m512i* acc) {
  __m512i sum = acc[7];
#pragma GCC unroll 7
  for (int j = 6; j >= 0; --j) sum = _mm512_add_epi32(_mm512_srai_epi32(sum, 1), acc[j]);
  return _mm512_reduce_add_epi32(sum);
}

template <int ROWS>
inline void int8_columns(const BitRows& bits, int64_t row, const uint8_t* planes, int32_t* plus) {
  __m512i acc[ROWS][8];
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) acc[r][j] = _mm512_setzero_si512();
  const uint8_t* from = bits.first + row * bits.row_bytes;
  for (int64_t offset = 0; offset < bits.bytes; offset += kChunkBytes, planes += kChunk) {
    const __mmask64 mask = first_bytes(bits.bytes - offset);
    __m512i v[ROWS];
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) {
      v[r] = _mm512_maskz_loadu_epi8(mask, from + r * bits.row_bytes + offset);
      prefetch(from + r * bits.row_bytes + offset + kPrefetch);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m512i bit = _mm512_set1_epi8(static_cast<char>(1 << j));
      const __m512i x = _mm512_loadu_si512(planes + 64 * j);
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; ++r)
        acc[r][j] = _mm512_dpbusd_epi32(acc[r][j], _mm512_and_si512(v[r], bit), x);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; ++r) plus[row + r] = fold(acc[r]);
}

// ---- W1A1 -----------------------------------------------------------------------------------

// Differing bits of `words` 32-bit words, out[t * kBlocks + b].
template <int TOKENS>
__attribute__((noinline)) void sign_rows(const __m512i* panel, int64_t words, const void* signs,
                                         int64_t stride, __m512i* out) {
  TokenRows<TOKENS> x(signs, stride);
  __m512i acc[TOKENS][kBlocks];
  BITIMPL_UNROLL
  for (int t = 0; t < TOKENS; ++t) acc[t][0] = acc[t][1] = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; ++w, panel += kBlocks) {
    const __m512i first = panel[0];
    const __m512i second = panel[1];
    BITIMPL_UNROLL
    for (int t = 0; t < TOKENS; ++t) {
      const __m512i bits = broadcast4(x.at(t));
      add_words(acc[t][0], _mm512_popcnt_epi32(_mm512_xor_si512(first, bits)));
      add_words(acc[t][1], _mm512_popcnt_epi32(_mm512_xor_si512(second, bits)));
    }
    x.advance(4);
  }
  BITIMPL_UNROLL
  for (int t = 0; t < TOKENS; ++t) {
    out[t * kBlocks] = acc[t][0];
    out[t * kBlocks + 1] = acc[t][1];
  }
}

using Rows = void (*)(const __m512i*, int64_t, const void*, int64_t, __m512i*);
constexpr Rows kInt8Rows[12] = {
    int8_rows<1>, int8_rows<2>, int8_rows<3>, int8_rows<4>,  int8_rows<5>,  int8_rows<6>,
    int8_rows<7>, int8_rows<8>, int8_rows<9>, int8_rows<10>, int8_rows<11>, int8_rows<12>};
constexpr Rows kSignRows[12] = {
    sign_rows<1>, sign_rows<2>, sign_rows<3>, sign_rows<4>,  sign_rows<5>,  sign_rows<6>,
    sign_rows<7>, sign_rows<8>, sign_rows<9>, sign_rows<10>, sign_rows<11>, sign_rows<12>};

struct Avx512 {
  static constexpr int64_t kRows = kBlocks * kLanes;
  static constexpr int64_t kTokens = 12;

  // Segments shorter than a chunk would mostly multiply padding.
  static bool along_columns(const LinearTask& task) {
    return task.x.rows == 1 && task.x.planes == 1 && task.segment >= kChunk;
  }

  static int64_t batch(const LinearTask& task) {
    return task.x.kind == BITIMPL_ACTIVATION_FLOAT ? 1 : task.x.rows;
  }

  static int64_t prepared_bytes(const LinearTask& task) {
    if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) return 2 * ((task.cols + 7) / 8) * kPatterns * 4;
    return along_columns(task) ? task.segments * planes_bytes(task.segment) : 0;
  }

  static int64_t panel_bytes(const LinearTask& task) {
    return along_columns(task) ? 0 : task.components * task.segments * segment_words(task) * kRows * 4;
  }

  static void prepare(const LinearTask& task, int64_t token, int64_t, void* memory) {
    if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) {
      build_float_tables(task.x.values + token * task.x.value_stride, task.cols,
                         static_cast<float*>(memory));
    } else if (along_columns(task)) {
      uint8_t* out = static_cast<uint8_t*>(memory);
      for (int64_t begin = 0; begin < task.cols; begin += task.segment) {
        regroup(task.x.q[0] + begin, smaller(task.segment, task.cols - begin), out);
        out += planes_bytes(task.segment);
      }
    }
  }

  static void load_rows(const LinearTask& task, int64_t row, int64_t rows, void* memory) {
    if (!along_columns(task)) load_panels<__m512i, kBlocks>(task, row, rows, memory, load_panel);
  }

  static void int8_dots(const LinearTask& task, const BitRows& bits, int64_t begin,
                        const int8_t* const* q, int64_t tokens, const void* memory,
                        int32_t* plus) {
    if (!along_columns(task)) {
      // The planes of a token alternate; the rows of one plane lie at equal distances.
      const int64_t planes = task.x.planes;
      const int64_t stride = tokens > planes ? q[planes] - q[0] : 0;
      for (int64_t p = 0; p < planes; ++p) {
        __m512i sums[kTokens * kBlocks];
        kInt8Rows[tokens / planes - 1](static_cast<const __m512i*>(bits.panel), bits.cols, q[p],
                                       stride, sums);
        for (int64_t t = 0; t < tokens / planes; ++t) {
          int32_t* row = plus + (t * planes + p) * kRows;
          for (int64_t b = 0; b < kBlocks; ++b) _mm512_store_si512(row + b * kLanes, sums[t * kBlocks + b]);
        }
      }
      return;
    }
    const uint8_t* planes =
        static_cast<const uint8_t*>(memory) + begin / task.segment * planes_bytes(task.segment);
    int64_t r = 0;
    for (; r + 2 <= bits.rows; r += 2) int8_columns<2>(bits, r, planes, plus);
    for (; r < bits.rows; ++r) int8_columns<1>(bits, r, planes, plus);
    for (; r < kRows; ++r) plus[r] = 0;
  }

  static void sign_dots(const BitRows& bits, const uint8_t* const* x, int64_t tokens,
                        int32_t* differ) {
    const __m512i* panel = static_cast<const __m512i*>(bits.panel);
    const int64_t words = bits.cols / 32;
    const int64_t stride = tokens > 1 ? x[1] - x[0] : 0;
    __m512i* out = reinterpret_cast<__m512i*>(differ);
    kSignRows[tokens - 1](panel, words, x[0], stride, out);
    if (bits.cols % 32 == 0) return;
    const __m512i mask = _mm512_set1_epi32(static_cast<int>((1u << (bits.cols % 32)) - 1));
    for (int64_t t = 0; t < tokens; ++t) {
      const uint64_t rest = load_bytes(x[t] + 4 * words, bits.bytes - 4 * words);
      const __m512i bit = _mm512_set1_epi32(static_cast<int>(rest));
      for (int64_t b = 0; b < kBlocks; ++b) {
        const __m512i word = _mm512_and_si512(_mm512_xor_si512(panel[words * kBlocks + b], bit), mask);
        add_words(out[t * kBlocks + b], _mm512_popcnt_epi32(word));
      }
    }
  }

  static void store(const LinearTask& task, int64_t token, int64_t tokens, int64_t row, int64_t rows,
                    const float* t) {
    if (task.y_dtype == BITIMPL_F32 && task.x.scale != nullptr && rows == kRows) {
      store_floats(static_cast<float*>(task.y) + token * task.y_stride + row, task.y_stride, tokens,
                   task.x.scale + token, task.bias == nullptr ? nullptr : task.bias + row, t);
      return;
    }
    for (int64_t i = 0; i < tokens; ++i, t += kRows) {
      for (int64_t r = 0; r < rows; r += kLanes) {
        store_vector(task, token + i, row + r, smaller(kLanes, rows - r), _mm512_loadu_ps(t + r));
      }
    }
  }

  // The usual case of store(), without a question a vector.
  static void store_floats(float* y, int64_t stride, int64_t tokens, const float* scale,
                           const float* bias, const float* t) {
    __m512 shift[kBlocks];
    for (int64_t b = 0; b < kBlocks; ++b) {
      shift[b] = bias == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(bias + b * kLanes);
    }
    for (int64_t i = 0; i < tokens; ++i, y += stride, t += kRows) {
      const __m512 factor = _mm512_set1_ps(scale[i]);
      for (int64_t b = 0; b < kBlocks; ++b) {
        __m512 value = _mm512_mul_ps(_mm512_loadu_ps(t + b * kLanes), factor);
        if (bias != nullptr) value = _mm512_add_ps(value, shift[b]);
        _mm512_storeu_ps(y + b * kLanes, value);
      }
    }
  }

  static void float_dots(const BitRows& bits, int64_t begin, const void* memory, float* sum) {
    const float* tables = static_cast<const float*>(memory) + begin / 4 * kPatterns;
    __m512 acc[kBlocks][2];
    for (auto& block : acc) block[0] = block[1] = _mm512_setzero_ps();
    const __m512i* panel = static_cast<const __m512i*>(bits.panel);
    for (int64_t i = 0; i < bits.bytes; ++i, tables += 2 * kPatterns) {
      const __m128i low_shift = _mm_cvtsi32_si128(static_cast<int>(i % 4 * 8));
      const __m128i high_shift = _mm_cvtsi32_si128(static_cast<int>(i % 4 * 8 + 4));
      const __m512 low = _mm512_loadu_ps(tables);
      const __m512 high = _mm512_loadu_ps(tables + kPatterns);
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) {
        // vpermps reads the low four bits of each index.
        const __m512i word = panel[i / 4 * kBlocks + b];
        const __m512i first = _mm512_srl_epi32(word, low_shift);
        const __m512i second = _mm512_srl_epi32(word, high_shift);
        acc[b][0] = _mm512_add_ps(acc[b][0], _mm512_permutexvar_ps(first, low));
        acc[b][1] = _mm512_add_ps(acc[b][1], _mm512_permutexvar_ps(second, high));
      }
    }
    for (int b = 0; b < kBlocks; ++b)
      _mm512_storeu_ps(sum + b * kLanes, _mm512_add_ps(acc[b][0], acc[b][1]));
  }
};

}  // namespace

void binary_avx512(const LinearTask& task, const Tile& tile) {
  if (bit_panel_serves(task)) bit_panel_avx512(task, tile);
  else if (panel_serves_avx512(task)) panel_avx512(task, tile);
  else run_binary_tile<Avx512>(task, tile);
}

int64_t binary_scratch_avx512(const LinearTask& task) {
  if (bit_panel_serves(task)) return bit_panel_scratch_avx512(task);
  return panel_serves_avx512(task) ? panel_scratch_avx512(task) : binary_scratch<Avx512>(task);
}

}  // namespace bitimpl
