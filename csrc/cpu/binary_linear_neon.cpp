// Binary kernels for NEON with dot products (sdot, udot).
//
// Rows are read as they lie, 16 bytes (128 columns) of four of them at a time, and summed across lanes
// once a segment: nothing is transposed and no panel is kept.
//   int8   a table lookup and a bit test turn two bytes into 16 masks, which are 0 or -1 to sdot
//   sign   xor, bits counted by bytes, udot with ones
//   float  a bit test a lane chooses between x and -x
#include "binary_tile.h"
#include "simd_neon.h"

namespace bitimpl {
namespace {

constexpr int64_t kChunkBytes = 16;
constexpr int64_t kChunk = 128;  // columns
constexpr int kFewRows = 4;      // rows of one inner product

// Rows past the last one are taken for the last one: nobody reads their sums.
inline const uint8_t* row_of(const BitRows& bits, int64_t row) {
  return bits.first + smaller(row, bits.rows - 1) * bits.row_bytes;
}

// The first n <= 16 bytes at p, zeros after them.
inline uint8x16_t load_first(const uint8_t* p, int64_t n) {
  alignas(16) uint8_t part[kChunkBytes] = {};
  memcpy(part, p, static_cast<size_t>(n));
  return vld1q_u8(part);
}

// Ones in the first n <= 128 bits.
inline uint8x16_t first_bits(int64_t n) {
  alignas(16) uint8_t part[kChunkBytes] = {};
  memset(part, 0xff, static_cast<size_t>(n / 8));
  if (n % 8 != 0) part[n / 8] = static_cast<uint8_t>((1 << n % 8) - 1);
  return vld1q_u8(part);
}

// Four rows' lanes to a sum a row.
inline int32x4_t row_sums(const int32x4_t (&rows)[kFewRows]) {
  return vpaddq_s32(vpaddq_s32(rows[0], rows[1]), vpaddq_s32(rows[2], rows[3]));
}

// ---- int8 activations -----------------------------------------------------------------------

// Subtracts the products of 16 columns, k on, for every row and token; `spread` repeats each of the two
// bytes of their bits eight times.
template <int TOKENS>
inline void int8_step(const uint8x16_t (&bits)[kFewRows], uint8x16_t spread, const int8_t* const (&q)[TOKENS],
                      int64_t k, int32x4_t (&lanes)[TOKENS][kFewRows]) {
  int8x16_t x[TOKENS];
#pragma GCC unroll 4
  for (int t = 0; t < TOKENS; ++t) x[t] = vld1q_s8(q[t] + k);
#pragma GCC unroll 4
  for (int r = 0; r < kFewRows; ++r) {
    const int8x16_t mask = vreinterpretq_s8_u8(bit_masks(vqtbl1q_u8(bits[r], spread)));
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t) lanes[t][r] = vdotq_s32(lanes[t][r], mask, x[t]);
  }
}

// `plus` of four rows, `stride` apart for each token. A function of its own, so that it has all registers.
template <int TOKENS>
__attribute__((noinline)) void int8_rows(const BitRows& bits, int64_t row, const int8_t* const* tokens,
                                         int32_t* plus, int64_t stride) {
  const uint8_t* from[kFewRows];
  for (int r = 0; r < kFewRows; ++r) from[r] = row_of(bits, row + r);
  const int8_t* q[TOKENS];
  for (int t = 0; t < TOKENS; ++t) q[t] = tokens[t];
  int32x4_t lanes[TOKENS][kFewRows];
#pragma GCC unroll 4
  for (int t = 0; t < TOKENS; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kFewRows; ++r) lanes[t][r] = vdupq_n_s32(0);
  }
  const uint8x16_t first_bytes = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
  uint8x16_t chunk[kFewRows];
  for (int64_t k = 0; k < bits.cols;) {
    const int64_t end = smaller(k + kChunk, bits.cols);
    if (end - k == kChunk) {
#pragma GCC unroll 4
      for (int r = 0; r < kFewRows; ++r) chunk[r] = vld1q_u8(from[r] + k / 8);
    } else {
      const uint8x16_t present = first_bits(end - k);
      const int64_t left = bits.bytes - k / 8;
      for (int r = 0; r < kFewRows; ++r) chunk[r] = vandq_u8(load_first(from[r] + k / 8, left), present);
    }
    uint8x16_t spread = first_bytes;
    for (; k < end; k += 16) {
      int8_step(chunk, spread, q, k, lanes);
      spread = vaddq_u8(spread, vdupq_n_u8(2));
    }
  }
  for (int t = 0; t < TOKENS; ++t) vst1q_s32(plus + t * stride + row, vnegq_s32(row_sums(lanes[t])));
}

// ---- sign activations -----------------------------------------------------------------------

// Adds the bits in which four rows differ from every token's.
template <int TOKENS>
inline void sign_step(const uint8x16_t (&bits)[kFewRows], const uint8x16_t (&x)[TOKENS],
                      uint32x4_t (&lanes)[TOKENS][kFewRows]) {
  const uint8x16_t ones = vdupq_n_u8(1);
#pragma GCC unroll 4
  for (int t = 0; t < TOKENS; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kFewRows; ++r) {
      lanes[t][r] = vdotq_u32(lanes[t][r], vcntq_u8(veorq_u8(bits[r], x[t])), ones);
    }
  }
}

template <int TOKENS>
__attribute__((noinline)) void sign_rows(const BitRows& bits, int64_t row, const uint8_t* const* tokens,
                                         int32_t* differ, int64_t stride) {
  const uint8_t* from[kFewRows];
  for (int r = 0; r < kFewRows; ++r) from[r] = row_of(bits, row + r);
  const uint8_t* x[TOKENS];
  for (int t = 0; t < TOKENS; ++t) x[t] = tokens[t];
  uint32x4_t lanes[TOKENS][kFewRows];
#pragma GCC unroll 4
  for (int t = 0; t < TOKENS; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kFewRows; ++r) lanes[t][r] = vdupq_n_u32(0);
  }
  uint8x16_t chunk[kFewRows], signs[TOKENS];
  const int64_t whole = bits.cols / kChunk * kChunkBytes;
  for (int64_t at = 0; at < whole; at += kChunkBytes) {
#pragma GCC unroll 4
    for (int r = 0; r < kFewRows; ++r) chunk[r] = vld1q_u8(from[r] + at);
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t) signs[t] = vld1q_u8(x[t] + at);
    sign_step(chunk, signs, lanes);
  }
  if (whole < bits.bytes) {
    // Whatever lies past the last column is not counted: zero on both sides.
    const uint8x16_t present = first_bits(bits.cols - 8 * whole);
    const int64_t left = bits.bytes - whole;
    for (int r = 0; r < kFewRows; ++r) chunk[r] = vandq_u8(load_first(from[r] + whole, left), present);
    for (int t = 0; t < TOKENS; ++t) signs[t] = vandq_u8(load_first(x[t] + whole, left), present);
    sign_step(chunk, signs, lanes);
  }
  for (int t = 0; t < TOKENS; ++t) {
    int32x4_t rows[kFewRows];
    for (int r = 0; r < kFewRows; ++r) rows[r] = vreinterpretq_s32_u32(lanes[t][r]);
    vst1q_s32(differ + t * stride + row, row_sums(rows));
  }
}

// ---- float activations ----------------------------------------------------------------------

constexpr int kFloatRows = 8;  // of one inner product: as many chains of additions
constexpr int64_t kFloatColumns = 32;

// Adds four columns: +x where the lane's bit of a row's word is set, else -x.
inline void float_step(const uint32x4_t (&words)[kFloatRows], uint32x4_t bit, const float* x,
                       float32x4_t (&lanes)[kFloatRows]) {
  const float32x4_t value = vld1q_f32(x);
  const float32x4_t negated = vnegq_f32(value);
#pragma GCC unroll 8
  for (int r = 0; r < kFloatRows; ++r) {
    lanes[r] = vaddq_f32(lanes[r], vbslq_f32(vtstq_u32(words[r], bit), value, negated));
  }
}

// sum[r] of eight rows; x is the segment, zeros from its last column to a multiple of 8.
__attribute__((noinline)) void float_rows(const BitRows& bits, int64_t row, const float* x, float* sum) {
  alignas(16) static constexpr uint32_t kFirstBits[4] = {1, 2, 4, 8};
  const uint32x4_t first = vld1q_u32(kFirstBits);
  const uint8_t* from[kFloatRows];
  for (int r = 0; r < kFloatRows; ++r) from[r] = row_of(bits, row + r);
  float32x4_t lanes[kFloatRows];
#pragma GCC unroll 8
  for (int r = 0; r < kFloatRows; ++r) lanes[r] = vdupq_n_f32(0.0f);
  uint32x4_t words[kFloatRows];
  int64_t at = 0;
  for (; at + 4 <= bits.bytes; at += 4) {
#pragma GCC unroll 8
    for (int r = 0; r < kFloatRows; ++r) {
      uint32_t word;
      memcpy(&word, from[r] + at, sizeof word);
      words[r] = vdupq_n_u32(word);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      float_step(words, vshlq_u32(first, vdupq_n_s32(4 * i)), x + 8 * at + 4 * i, lanes);
    }
  }
  for (; at < bits.bytes; ++at) {
    for (int r = 0; r < kFloatRows; ++r) words[r] = vdupq_n_u32(from[r][at]);
    float_step(words, first, x + 8 * at, lanes);
    float_step(words, vshlq_n_u32(first, 4), x + 8 * at + 4, lanes);
  }
  for (int r = 0; r < kFloatRows; ++r) sum[row + r] = vaddvq_f32(lanes[r]);
}

struct Neon {
  static constexpr int64_t kRows = 16;
  static constexpr int64_t kTokens = 4;

  static int64_t batch(const LinearTask& task) {
    return task.x.kind == BITIMPL_ACTIVATION_FLOAT ? 1 : task.x.rows;
  }

  static int64_t panel_bytes(const LinearTask&) { return 0; }
  static void load_rows(const LinearTask&, int64_t, int64_t, void*) {}

  // Float activations: a copy that is as long as the bits are.
  static int64_t prepared_bytes(const LinearTask& task) {
    return task.x.kind == BITIMPL_ACTIVATION_FLOAT ? (task.cols + 7) / 8 * 8 * 4 : 0;
  }

  static void prepare(const LinearTask& task, int64_t token, int64_t, void* memory) {
    if (task.x.kind != BITIMPL_ACTIVATION_FLOAT) return;
    float* copy = static_cast<float*>(memory);
    memcpy(copy, task.x.values + token * task.x.value_stride, static_cast<size_t>(task.cols) * 4);
    for (int64_t k = task.cols; k % 8 != 0; ++k) copy[k] = 0.0f;
  }

  static void int8_dots(const LinearTask&, const BitRows& bits, int64_t, const int8_t* const* q,
                        int64_t tokens, const void*, int32_t* plus) {
    for (int64_t row = 0; row < kRows; row += kFewRows) {
      switch (tokens) {
        case 1: int8_rows<1>(bits, row, q, plus, kRows); break;
        case 2: int8_rows<2>(bits, row, q, plus, kRows); break;
        case 3: int8_rows<3>(bits, row, q, plus, kRows); break;
        default: int8_rows<4>(bits, row, q, plus, kRows); break;
      }
    }
  }

  static void sign_dots(const BitRows& bits, const uint8_t* const* x, int64_t tokens,
                        int32_t* differ) {
    for (int64_t row = 0; row < kRows; row += kFewRows) {
      switch (tokens) {
        case 1: sign_rows<1>(bits, row, x, differ, kRows); break;
        case 2: sign_rows<2>(bits, row, x, differ, kRows); break;
        case 3: sign_rows<3>(bits, row, x, differ, kRows); break;
        default: sign_rows<4>(bits, row, x, differ, kRows); break;
      }
    }
  }

  static void float_dots(const BitRows& bits, int64_t begin, const void* memory, float* sum) {
    const float* x = static_cast<const float*>(memory) + begin;
    for (int64_t row = 0; row < kRows; row += kFloatRows) float_rows(bits, row, x, sum);
  }

  static void store(const LinearTask& task, int64_t token, int64_t tokens, int64_t row, int64_t rows,
                    const float* t) {
    for (int64_t i = 0; i < tokens; ++i) store_rows(task, token + i, row, rows, t + i * kRows);
  }
};

}  // namespace

void binary_neon(const LinearTask& task, const Tile& tile) {
  if (bit_panel_serves(task)) bit_panel_neon(task, tile);
  else if (panel_serves_neon(task)) panel_neon(task, tile);
  else run_binary_tile<Neon>(task, tile);
}

int64_t binary_scratch_neon(const LinearTask& task) {
  if (bit_panel_serves(task)) return bit_panel_scratch_neon(task);
  return panel_serves_neon(task) ? panel_scratch_neon(task) : binary_scratch<Neon>(task);
}

}  // namespace bitimpl
