// The loop around every binary kernel: tokens, rows, components, scale groups and the epilogue.
// An instruction set brings only the inner dot products (see the Isa contract below). Everything
// has internal linkage (see kernels.h).
//
// One layout idea carries all of them: a dot product over bits needs, per row of weights, either
//   int8    plus   = sum of q over the columns whose bit is 1    dot = 2 * plus - sum(q)
//   sign    differ = popcount(weight bits ^ activation bits)     dot = columns - 2 * differ
//   float   sum of +-x
// and 16 or 32 rows are kept side by side in vector lanes, so that nothing is summed across lanes
// and one activation, broadcast, serves all rows.
#ifndef BITIMPL_CPU_BINARY_TILE_H
#define BITIMPL_CPU_BINARY_TILE_H

#include <stdint.h>
#include <string.h>

#include "epilogue.h"
#include "kernels.h"

namespace bitimpl {
namespace {

// The bits of up to Isa::kRows rows over one segment of columns, which starts on a byte.
struct BitRows {
  const uint8_t* first;  // first byte of the segment in the first row
  int64_t row_bytes;     // distance between rows
  int64_t rows;          // rows that exist
  int64_t cols;          // columns of the segment
  int64_t bytes;         // ceil(cols / 8); nothing beyond may be read
  const void* panel;     // the segment in the panel of load_rows()
};

// What an Isa provides:
//   kRows                  rows side by side
//   kTokens                activation rows that one call takes at most
//   batch(task)            activation rows that one prepare() takes at most
//   prepared_bytes(task)   scratch of prepare()
//   panel_bytes(task)      scratch of load_rows()
//   prepare(task, token, tokens, prepared)
//                          whatever the dot products want to precompute from the activations
//   load_rows(task, row, rows, panel)
//                          the same from the weights of every component and segment
//   int8_dots(task, bits, begin, q, tokens, prepared, plus)
//                          plus[t * kRows + r] from the int8 rows q[t], columns from `begin` on
//   sign_dots(bits, x, tokens, differ)
//                          differ[t * kRows + r]; x[t] are the sign bits of the segment as bytes
//   float_dots(bits, begin, prepared, sum)
//                          sum[r] for the one token that prepare() was given
//   store(task, token, tokens, row, rows, t)
//                          store_rows() of epilogue.h, each token's from kRows sums

// A panel holds 32-bit words, one word of every row side by side. Segments of whole words follow
// each other as in the row; any other segment starts a word of its own.
[[maybe_unused]] inline int64_t segment_words(const LinearTask& task) {
  return (task.segment + 31) / 32;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Fills the panel with `load(first byte, row bytes, rows, bytes, out)`, which writes BLOCKS vectors
// per 32-bit word: a row in one go where its segments are whole words, else segment by segment.
template <class Vector, int64_t BLOCKS, class Load>
void load_panels(const LinearTask& task, int64_t row, int64_t rows, void* panel, Load load) {
  const int64_t row_bytes = (task.cols + 7) / 8;
  const bool whole = task.segment % 32 == 0 || task.segments == 1;
  const int64_t step = whole ? task.cols : task.segment;
  Vector* out = static_cast<Vector*>(panel);
  for (int64_t c = 0; c < task.components; ++c) {
    const uint8_t* codes = task.codes + (c * task.stored_rows + row) * row_bytes;
    Vector* to = out + c * task.segments * segment_words(task) * BLOCKS;
    for (int64_t begin = 0; begin < task.cols; begin += step) {
      const int64_t cols = smaller(step, task.cols - begin);
      load(codes + begin / 8, row_bytes, rows, (cols + 7) / 8, to);
      to += (cols + 31) / 32 * BLOCKS;
    }
  }
}

// Partial sums of four activations under all 16 sign patterns: bit i of the index is the weight
// bit of column i. A row then adds one table entry per four columns.
constexpr int64_t kPatterns = 16;

struct SignPatterns {
  float sign[4][kPatterns];
};

constexpr SignPatterns make_sign_patterns() {
  SignPatterns p{};
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < kPatterns; ++e) p.sign[i][e] = ((e >> i) & 1) != 0 ? 1.0f : -1.0f;
  return p;
}

constexpr SignPatterns kSignPatterns = make_sign_patterns();

// Tables of row `x` for its ceil(cols / 8) bytes, two per byte; columns past the end count zero.
[[maybe_unused]] void build_float_tables(const float* x, int64_t cols, float* tables) {
  for (int64_t k = 0; k < (cols + 7) / 8 * 8; k += 4, tables += kPatterns) {
    float v[4];
    for (int64_t i = 0; i < 4; ++i) v[i] = k + i < cols ? x[k + i] : 0.0f;
    for (int64_t e = 0; e < kPatterns; ++e) {
      const float low = kSignPatterns.sign[0][e] * v[0] + kSignPatterns.sign[1][e] * v[1];
      const float high = kSignPatterns.sign[2][e] * v[2] + kSignPatterns.sign[3][e] * v[3];
      tables[e] = low + high;
    }
  }
}

// The first `bytes` (1 .. 8) bytes at p as a little-endian word, zeros above.
[[maybe_unused]] inline uint64_t load_bytes(const uint8_t* p, int64_t bytes) {
  uint64_t word = 0;
  memcpy(&word, p, static_cast<size_t>(bytes));
  return word;
}

template <class Isa>
struct BinaryTile {
  static constexpr int64_t kRows = Isa::kRows;
  static constexpr int64_t kTokens = Isa::kTokens;

  const LinearTask& task;
  void* panel;
  void* prepared;
  float total[kTokens * kRows];  // t of impl.h, per token and row
  float scale[kRows];
  int64_t scaled_row = -1;  // the row `scale` starts with, where a row has one scale

  BinaryTile(const LinearTask& linear, void* scratch)
      : task(linear),
        panel(scratch),
        prepared(static_cast<char*>(scratch) + rounded_panel_bytes(linear)) {}

  static int64_t rounded_panel_bytes(const LinearTask& task) {
    return (Isa::panel_bytes(task) + 63) / 64 * 64;
  }

  void load_scales(int64_t component, int64_t row, int64_t rows, int64_t group) {
    if (task.components * task.segments == 1) {
      if (scaled_row == row) return;
      scaled_row = row;
    }
    for (int64_t r = 0; r < kRows; ++r)
      scale[r] = r < rows ? scale_at(task, component, row + r, group) : 0.0f;
  }

  void add_int8(const BitRows& bits, int64_t token, int64_t tokens, int64_t group) {
    const int64_t planes = task.x.planes;
    const int64_t begin = group * task.segment;
    const int8_t* q[kTokens];
    alignas(64) int32_t plus[kTokens * kRows];
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t p = 0; p < planes; ++p)
        q[t * planes + p] = task.x.q[p] + (token + t) * task.x.q_stride + begin;
    Isa::int8_dots(task, bits, begin, q, tokens * planes, prepared, plus);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t at = (token + t) * task.segments + group;
      const int32_t* row = plus + t * planes * kRows;
      float* __restrict out = total + t * kRows;
      const float* __restrict factor = scale;
      // Unsigned: twice the sum of the plus columns may leave int32, the difference does not.
      const uint32_t sum = static_cast<uint32_t>(task.x.sums[0][at]);
      if (planes == 1) {
        for (int64_t r = 0; r < kRows; ++r) {
          const int32_t dot = static_cast<int32_t>(2u * static_cast<uint32_t>(row[r]) - sum);
          out[r] = out[r] + factor[r] * static_cast<float>(dot);
        }
      } else {
        const uint32_t low_sum = static_cast<uint32_t>(task.x.sums[1][at]);
        for (int64_t r = 0; r < kRows; ++r) {
          const int32_t high = static_cast<int32_t>(2u * static_cast<uint32_t>(row[r]) - sum);
          const int32_t low =
              static_cast<int32_t>(2u * static_cast<uint32_t>(row[kRows + r]) - low_sum);
          const int64_t dot = 256 * static_cast<int64_t>(high) + low;
          out[r] = out[r] + factor[r] * static_cast<float>(dot);
        }
      }
    }
  }

  void add_sign(const BitRows& bits, int64_t component, int64_t row, int64_t token, int64_t tokens,
                int64_t group) {
    const bool first = component + group == 0;  // of what `total` then holds
    const int64_t begin = group * task.segment;
    const uint8_t* x[kTokens];
    alignas(64) int32_t differ[kTokens * kRows];
    for (int64_t t = 0; t < tokens; ++t) {
      const uint64_t* signs = task.x.signs + (token + t) * task.x.sign_stride;
      x[t] = reinterpret_cast<const uint8_t*>(signs) + begin / 8;
    }
    Isa::sign_dots(bits, x, tokens, differ);
    const int32_t cols = static_cast<int32_t>(bits.cols);
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t* __restrict unlike = differ + t * kRows;
      float* __restrict out = total + t * kRows;
      const float* __restrict factor = scale;
      const auto add = [&](auto dot) {
        if (first) {
          for (int64_t r = 0; r < kRows; ++r) out[r] = 0.0f + factor[r] * static_cast<float>(dot(r));
        } else {
          for (int64_t r = 0; r < kRows; ++r) out[r] = out[r] + factor[r] * static_cast<float>(dot(r));
        }
      };
      if (task.x.outside != nullptr && task.x.outside[token + t] != nullptr) {
        const int32_t* outside = task.x.outside[token + t] + component * task.x.outside_stride + row;
        add([&](int64_t r) { return cols - 2 * unlike[r] + outside[r]; });
      } else {
        add([&](int64_t r) { return cols - 2 * unlike[r]; });
      }
    }
  }

  void add_float(const BitRows& bits, int64_t group) {
    float sum[kRows];
    Isa::float_dots(bits, group * task.segment, prepared, sum);
    for (int64_t r = 0; r < kRows; ++r) total[r] = total[r] + scale[r] * sum[r];
  }

  // y of rows [row, row + rows) for `tokens` activation rows from `token` on.
  void compute(int64_t row, int64_t rows, int64_t token, int64_t tokens) {
    const int64_t row_bytes = (task.cols + 7) / 8;
    if (task.x.bit_planes == 0) memset(total, 0, sizeof(float) * static_cast<size_t>(tokens * kRows));
    for (int64_t c = 0; c < task.components; ++c) {
      const uint8_t* codes = task.codes + (c * task.stored_rows + row) * row_bytes;
      for (int64_t g = 0; g < task.segments; ++g) {
        const int64_t begin = g * task.segment;
        const int64_t left = task.cols - begin;
        const int64_t cols = left < task.segment ? left : task.segment;
        const int64_t word = (c * task.segments + g) * segment_words(task);
        const BitRows bits = {codes + begin / 8, row_bytes, rows, cols, (cols + 7) / 8,
                              static_cast<const uint32_t*>(panel) + word * kRows};
        load_scales(c, row, rows, g);
        if (task.x.bit_planes > 0) add_sign(bits, c, row, token, tokens, g);
        else if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) add_float(bits, g);
        else add_int8(bits, token, tokens, g);
      }
    }
    Isa::store(task, token, tokens, row, rows, total);
  }

  // Activation rows that one pass over the weights serves.
  int64_t tokens_at_once() const {
    if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) return 1;
    return task.x.planes == 2 ? kTokens / 2 : kTokens;
  }
};

template <class Isa>
int64_t binary_scratch(const LinearTask& task) {
  return BinaryTile<Isa>::rounded_panel_bytes(task) + Isa::prepared_bytes(task);
}

template <class Isa>
void run_binary_tile(const LinearTask& task, const Tile& tile) {
  BinaryTile<Isa> work(task, tile.scratch);
  const int64_t row_begin = tile.block_begin * kBinaryBlockRows;
  const int64_t row_end = smaller(tile.block_end * kBinaryBlockRows, task.rows);
  const int64_t most = work.tokens_at_once();
  for (int64_t first = tile.token_begin; first < tile.token_end; first += Isa::batch(task)) {
    const int64_t last = smaller(first + Isa::batch(task), tile.token_end);
    Isa::prepare(task, first, last - first, work.prepared);
    for (int64_t row = row_begin; row < row_end; row += Isa::kRows) {
      const int64_t rows = smaller(Isa::kRows, row_end - row);
      Isa::load_rows(task, row, rows, work.panel);
      for (int64_t token = first; token < last;) {
        // Equal shares: 16 tokens are 8 + 8, not 12 + 4.
        const int64_t shares = (last - token + most - 1) / most;
        const int64_t tokens = (last - token + shares - 1) / shares;
        work.compute(row, rows, token, tokens);
        token += tokens;
      }
    }
  }
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_BINARY_TILE_H
