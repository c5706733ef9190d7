// Binary kernels for AVX2.
//
// The scheme of the AVX-512 file in halves: two blocks of 8 rows lie side by side in lanes, 256
// columns of a block are 8 registers, one row each, and their 8 x 8 transposition is the panel:
// register w holds the bits of columns 32 w .. 32 w + 31, row r in lane r. From it
//   int8   a byte shuffle, a mask and a minimum turn the bits of columns 4 s .. 4 s + 3 into the
//          bytes 0 or 1 of a lane; vpmaddubsw multiplies them with four activations broadcast to
//          all rows. A pair adds at most 2 * 128 to int16, a panel 64 of them, so int16 holds a
//          panel and is widened to int32 after it
//   sign   word xor activation word, bits counted by nibble lookup, summed in bytes over a panel
//   float  three bits index a table of 8 partial sums (vpermps): a byte is 3 + 3 + 2 columns
#include "binary_tile.h"
#include "simd_avx2.h"

namespace bitimpl {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kBlocks = 2;
constexpr int64_t kChunkBytes = 32;
constexpr int64_t kChunk = 256;  // columns
constexpr int64_t kByteTables = 3;  // of kEntries floats, per byte of weights
constexpr int64_t kEntries = 8;

// As in the AVX-512 file: word w of block b at out[w * kBlocks + b], zero where there is none.
void load_panel(const uint8_t* first, int64_t row_bytes, int64_t rows, int64_t bytes,
                __m256i* out) {
  for (int64_t offset = 0; offset < bytes; offset += kChunkBytes) {
    const int64_t present = smaller(kChunkBytes, bytes - offset);
    const int64_t words = (present + 3) / 4;
    for (int64_t b = 0; b < kBlocks; ++b) {
      __m256i row[8], word[8];
      for (int64_t r = 0; r < kLanes; ++r) {
        const int64_t n = b * kLanes + r;
        const uint8_t* from = first + n * row_bytes + offset;
        if (n >= rows) {
          row[r] = _mm256_setzero_si256();
        } else if (present == kChunkBytes) {
          row[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        } else {
          alignas(32) uint8_t part[kChunkBytes] = {};
          memcpy(part, from, static_cast<size_t>(present));
          row[r] = _mm256_load_si256(reinterpret_cast<const __m256i*>(part));
        }
      }
      transpose_words(row, word);
      for (int64_t w = 0; w < words; ++w) _mm256_store_si256(out + w * kBlocks + b, word[w]);
    }
    out += words * kBlocks;
  }
}

inline void store_counts(int32_t* out, const __m256i (&acc)[kBlocks]) {
  for (int64_t b = 0; b < kBlocks; ++b)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + b * kLanes), acc[b]);
}

// The bits 4 HALF .. 4 HALF + 3 of one byte of every lane as bytes 0 or 1; `spread` repeats that
// byte over the lane.
template <int HALF>
inline __m256i nibble_bytes(__m256i word, __m256i spread) {
  const __m256i bit = _mm256_set1_epi32(HALF == 0 ? 0x08040201 : static_cast<int>(0x80402010u));
  const __m256i bytes = _mm256_shuffle_epi8(word, spread);
  return _mm256_min_epu8(_mm256_and_si256(bytes, bit), _mm256_set1_epi8(1));
}

// Adds the products of four columns for every token.
template <int HALF, int TOKENS>
inline void int8_step(const __m256i* panel, __m256i spread, const int8_t* const* q, int64_t k,
                      __m256i (&acc)[TOKENS][kBlocks]) {
  const __m256i w0 = nibble_bytes<HALF>(panel[0], spread);
  const __m256i w1 = nibble_bytes<HALF>(panel[1], spread);
#pragma GCC unroll 4
  for (int t = 0; t < TOKENS; ++t) {
    const __m256i x = broadcast4(q[t] + k + 4 * HALF);
    acc[t][0] = _mm256_add_epi16(acc[t][0], _mm256_maddubs_epi16(w0, x));
    acc[t][1] = _mm256_add_epi16(acc[t][1], _mm256_maddubs_epi16(w1, x));
  }
}

template <int TOKENS>
void int8_rows(const BitRows& bits, const int8_t* const* q, int32_t* plus) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[TOKENS][kBlocks];
  for (auto& token : sum) token[0] = token[1] = _mm256_setzero_si256();
  const __m256i* panel = static_cast<const __m256i*>(bits.panel);
  for (int64_t begin = 0; begin < bits.cols; begin += kChunk) {
    const int64_t end = smaller(begin + kChunk, bits.cols);
    __m256i acc[TOKENS][kBlocks];
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
    for (int64_t word = begin; word < end; word += 32, panel += kBlocks) {
      // Byte i of the lanes at byte positions 0, 4, 8, 12 of each 128-bit half.
      __m256i spread = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c,  //
                                         0, 0x04040404, 0x08080808, 0x0c0c0c0c);
      for (int64_t k = word; k < word + 32; k += 8) {
        int8_step<0>(panel, spread, q, k, acc);
        int8_step<1>(panel, spread, q, k, acc);
        spread = _mm256_add_epi8(spread, _mm256_set1_epi8(1));
      }
    }
    for (int t = 0; t < TOKENS; ++t)
      for (int b = 0; b < kBlocks; ++b)
        sum[t][b] = _mm256_add_epi32(sum[t][b], _mm256_madd_epi16(acc[t][b], ones));
  }
  for (int t = 0; t < TOKENS; ++t) store_counts(plus + t * kBlocks * kLanes, sum[t]);
}

// ---- W1A1 -----------------------------------------------------------------------------------

inline __m256i count_bytes(__m256i v) {
  const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                          0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(v, nibble));
  const __m256i high =
      _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
  return _mm256_add_epi8(low, high);
}

template <int TOKENS>
void sign_rows(const BitRows& bits, const uint8_t* const* x, int32_t* differ) {
  const __m256i byte_ones = _mm256_set1_epi8(1);
  const __m256i word_ones = _mm256_set1_epi16(1);
  __m256i sum[TOKENS][kBlocks];
  for (auto& token : sum) token[0] = token[1] = _mm256_setzero_si256();
  const __m256i* panel = static_cast<const __m256i*>(bits.panel);
  const int64_t whole = bits.cols / 32 * 4;  // bytes of words without a tail
  for (int64_t begin = 0; begin < bits.bytes; begin += kChunkBytes) {
    const int64_t end = smaller(begin + kChunkBytes, whole);
    __m256i acc[TOKENS][kBlocks];  // bytes: at most 8 words of 8 bits
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
    for (int64_t at = begin; at < end; at += 4, panel += kBlocks) {
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; ++t) {
        const __m256i bit = broadcast4(x[t] + at);
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b)
          acc[t][b] = _mm256_add_epi8(acc[t][b], count_bytes(_mm256_xor_si256(panel[b], bit)));
      }
    }
    if (bits.bytes <= begin + kChunkBytes && whole < bits.bytes) {
      const __m256i mask = _mm256_set1_epi32(static_cast<int>((1u << (bits.cols % 32)) - 1));
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; ++t) {
        const __m256i bit =
            _mm256_set1_epi32(static_cast<int>(load_bytes(x[t] + whole, bits.bytes - whole)));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          const __m256i word = _mm256_and_si256(_mm256_xor_si256(panel[b], bit), mask);
          acc[t][b] = _mm256_add_epi8(acc[t][b], count_bytes(word));
        }
      }
    }
    for (int t = 0; t < TOKENS; ++t)
      for (int b = 0; b < kBlocks; ++b)
        sum[t][b] = _mm256_add_epi32(
            sum[t][b], _mm256_madd_epi16(_mm256_maddubs_epi16(acc[t][b], byte_ones), word_ones));
  }
  for (int t = 0; t < TOKENS; ++t) store_counts(differ + t * kBlocks * kLanes, sum[t]);
}

// ---- float ----------------------------------------------------------------------------------

// The eight sums of +-a +-b +-c: bits 0, 1 and 2 of the index are their weight bits.
void build_table(float a, float b, float c, float* table) {
  for (int e = 0; e < kEntries; ++e)
    table[e] = kSignPatterns.sign[0][e] * a + kSignPatterns.sign[1][e] * b +
               kSignPatterns.sign[2][e] * c;
}

void build_byte_tables(const float* x, int64_t cols, float* tables) {
  for (int64_t k = 0; k < cols; k += 8, tables += kByteTables * kEntries) {
    float v[8];
    for (int64_t i = 0; i < 8; ++i) v[i] = k + i < cols ? x[k + i] : 0.0f;
    build_table(v[0], v[1], v[2], tables);
    build_table(v[3], v[4], v[5], tables + kEntries);
    build_table(v[6], v[7], 0.0f, tables + 2 * kEntries);  // bit 2 is the next byte's
  }
}

struct Avx2 {
  static constexpr int64_t kRows = kBlocks * kLanes;
  static constexpr int64_t kTokens = 4;

  static int64_t batch(const LinearTask& task) {
    return task.x.kind == BITIMPL_ACTIVATION_FLOAT ? 1 : task.x.rows;
  }

  static int64_t prepared_bytes(const LinearTask& task) {
    if (task.x.kind != BITIMPL_ACTIVATION_FLOAT) return 0;
    return (task.cols + 7) / 8 * kByteTables * kEntries * 4;
  }

  static int64_t panel_bytes(const LinearTask& task) {
    return task.components * task.segments * segment_words(task) * kRows * 4;
  }

  static void prepare(const LinearTask& task, int64_t token, int64_t, void* memory) {
    if (task.x.kind == BITIMPL_ACTIVATION_FLOAT)
      build_byte_tables(task.x.values + token * task.x.value_stride, task.cols,
                        static_cast<float*>(memory));
  }

  static void load_rows(const LinearTask& task, int64_t row, int64_t rows, void* memory) {
    load_panels<__m256i, kBlocks>(task, row, rows, memory, load_panel);
  }

  static void int8_dots(const LinearTask&, const BitRows& bits, int64_t, const int8_t* const* q,
                        int64_t tokens, const void*, int32_t* plus) {
    switch (tokens) {
      case 1: return int8_rows<1>(bits, q, plus);
      case 2: return int8_rows<2>(bits, q, plus);
      case 3: return int8_rows<3>(bits, q, plus);
      default: return int8_rows<4>(bits, q, plus);
    }
  }

  static void sign_dots(const BitRows& bits, const uint8_t* const* x, int64_t tokens,
                        int32_t* differ) {
    switch (tokens) {
      case 1: return sign_rows<1>(bits, x, differ);
      case 2: return sign_rows<2>(bits, x, differ);
      case 3: return sign_rows<3>(bits, x, differ);
      default: return sign_rows<4>(bits, x, differ);
    }
  }

  static void store(const LinearTask& task, int64_t token, int64_t tokens, int64_t row, int64_t rows,
                    const float* t) {
    for (int64_t i = 0; i < tokens; ++i) store_rows(task, token + i, row, rows, t + i * kRows);
  }

  static void float_dots(const BitRows& bits, int64_t begin, const void* memory, float* sum) {
    const float* tables = static_cast<const float*>(memory) + begin / 8 * kByteTables * kEntries;
    __m256 acc[kBlocks][kByteTables];
    for (auto& block : acc) block[0] = block[1] = block[2] = _mm256_setzero_ps();
    const __m256i* panel = static_cast<const __m256i*>(bits.panel);
    for (int64_t i = 0; i < bits.bytes; ++i, tables += kByteTables * kEntries) {
      const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(i % 4 * 8));
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) {
        // vpermps reads the low three bits of each index.
        const __m256i first = _mm256_srl_epi32(panel[i / 4 * kBlocks + b], shift);
        const __m256i index[kByteTables] = {first, _mm256_srli_epi32(first, 3),
                                            _mm256_srli_epi32(first, 6)};
#pragma GCC unroll 3
        for (int j = 0; j < kByteTables; ++j) {
          const __m256 table = _mm256_loadu_ps(tables + j * kEntries);
          acc[b][j] = _mm256_add_ps(acc[b][j], _mm256_permutevar8x32_ps(table, index[j]));
        }
      }
    }
    for (int b = 0; b < kBlocks; ++b)
      _mm256_storeu_ps(sum + b * kLanes,
                       _mm256_add_ps(_mm256_add_ps(acc[b][0], acc[b][1]), acc[b][2]));
  }
};

}  // namespace

void binary_avx2(const LinearTask& task, const Tile& tile) {
  if (bit_panel_serves(task)) bit_panel_avx2(task, tile);
  else if (panel_serves_avx2(task)) panel_avx2(task, tile);
  else run_binary_tile<Avx2>(task, tile);
}

int64_t binary_scratch_avx2(const LinearTask& task) {
  if (bit_panel_serves(task)) return bit_panel_scratch_avx2(task);
  return panel_serves_avx2(task) ? panel_scratch_avx2(task) : binary_scratch<Avx2>(task);
}

}  // namespace bitimpl
