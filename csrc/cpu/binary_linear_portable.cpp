// Binary kernels in plain C++: the reference for the vector ones, and what runs where no
// instruction set below is there.
//
// Integer and float dot products look up the sum of four activations under the four weight bits
// of a nibble; W1A1 counts bits in 64-bit words.
#include "binary_tile.h"

namespace bitimpl {
namespace {

struct Portable {
  static constexpr int64_t kRows = 16;
  static constexpr int64_t kTokens = 2;  // int16 activations are two int8 rows

  static int64_t tables_bytes(const LinearTask& task) {
    return 2 * ((task.cols + 7) / 8) * kPatterns * 4;
  }

  // The tables of these tokens are what prepare() leaves.
  static int64_t batch(const LinearTask& task) {
    if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) return 1;
    return task.x.planes == 0 ? task.x.rows : kTokens / task.x.planes;
  }

  static int64_t panel_bytes(const LinearTask&) { return 0; }
  static void load_rows(const LinearTask&, int64_t, int64_t, void*) {}

  static int64_t prepared_bytes(const LinearTask& task) {
    if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) return tables_bytes(task);
    return task.x.planes == 0 ? 0 : kTokens * tables_bytes(task);
  }

  static void build_int_tables(const int8_t* q, int64_t cols, int32_t* tables) {
    for (int64_t k = 0; k < (cols + 7) / 8 * 8; k += 4, tables += kPatterns)
      for (int e = 0; e < kPatterns; ++e) {
        int32_t sum = 0;
        for (int i = 0; i < 4; ++i) sum += ((e >> i) & 1) != 0 && k + i < cols ? q[k + i] : 0;
        tables[e] = sum;
      }
  }

  static void prepare(const LinearTask& task, int64_t token, int64_t tokens, void* memory) {
    if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) {
      build_float_tables(task.x.values + token * task.x.value_stride, task.cols,
                         static_cast<float*>(memory));
      return;
    }
    int32_t* tables = static_cast<int32_t*>(memory);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t p = 0; p < task.x.planes; ++p, tables += tables_bytes(task) / 4)
        build_int_tables(task.x.q[p] + (token + t) * task.x.q_stride, task.cols, tables);
  }

  static void int8_dots(const LinearTask& task, const BitRows& bits, int64_t begin,
                        const int8_t* const*, int64_t tokens, const void* memory, int32_t* plus) {
    const int32_t* tables = static_cast<const int32_t*>(memory) + begin / 4 * kPatterns;
    for (int64_t t = 0; t < tokens; ++t, tables += tables_bytes(task) / 4) {
      for (int64_t r = 0; r < kRows; ++r) {
        int32_t sum = 0;
        const uint8_t* row = bits.first + r * bits.row_bytes;
        for (int64_t i = 0; r < bits.rows && i < bits.bytes; ++i) {
          const int32_t* pair = tables + 2 * i * kPatterns;
          sum += pair[row[i] & 15] + pair[kPatterns + (row[i] >> 4)];
        }
        plus[t * kRows + r] = sum;
      }
    }
  }

  static int32_t ones(uint64_t v) {
    v -= (v >> 1) & 0x5555555555555555ull;
    v = (v & 0x3333333333333333ull) + ((v >> 2) & 0x3333333333333333ull);
    v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0full;
    return static_cast<int32_t>((v * 0x0101010101010101ull) >> 56);
  }

  static void sign_dots(const BitRows& bits, const uint8_t* const* x, int64_t tokens,
                        int32_t* differ) {
    const int64_t whole = bits.cols / 64 * 8;  // bytes in whole words
    const int64_t tail = bits.cols % 64;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = 0; r < kRows; ++r) {
        int32_t count = 0;
        if (r < bits.rows) {
          const uint8_t* row = bits.first + r * bits.row_bytes;
          for (int64_t i = 0; i < whole; i += 8)
            count += ones(load_bytes(row + i, 8) ^ load_bytes(x[t] + i, 8));
          if (tail != 0) {
            const int64_t n = bits.bytes - whole;
            const uint64_t word = load_bytes(row + whole, n) ^ load_bytes(x[t] + whole, n);
            count += ones(word & ((1ull << tail) - 1));
          }
        }
        differ[t * kRows + r] = count;
      }
    }
  }

  static void store(const LinearTask& task, int64_t token, int64_t tokens, int64_t row, int64_t rows,
                    const float* t) {
    for (int64_t i = 0; i < tokens; ++i) store_rows(task, token + i, row, rows, t + i * kRows);
  }

  static void float_dots(const BitRows& bits, int64_t begin, const void* memory, float* sum) {
    const float* tables = static_cast<const float*>(memory) + begin / 4 * kPatterns;
    for (int64_t r = 0; r < kRows; ++r) {
      float low = 0.0f, high = 0.0f;
      const uint8_t* row = bits.first + r * bits.row_bytes;
      for (int64_t i = 0; r < bits.rows && i < bits.bytes; ++i) {
        const float* pair = tables + 2 * i * kPatterns;
        low += pair[row[i] & 15];
        high += pair[kPatterns + (row[i] >> 4)];
      }
      sum[r] = low + high;
    }
  }
};

}  // namespace

void binary_portable(const LinearTask& task, const Tile& tile) {
  run_binary_tile<Portable>(task, tile);
}

int64_t binary_scratch_portable(const LinearTask& task) { return binary_scratch<Portable>(task); }

}  // namespace bitimpl
