// Integer GEMM over decoded panels: decode a panel of rows once, use it for every activation row.
//
// A panel holds four row blocks (80 rows of base3, 64 of the other formats), one unsigned byte a
// weight: the digit 0, 1 or 2, for binary 0 or 2. Either way dot = dot(bytes, q) - sum(q). A vector
// is 16 rows x 4 columns, one row a dword, and the vectors of the same 16 rows follow each other
// along the columns, so that four activations broadcast to all dwords serve 16 rows. Decoding and
// loading are shared by the activation rows of a batch and stand in nobody's way.
//
// What an Isa provides:
//   kVectors, kTokens      vectors and activation rows of one inner product
//   least_vectors(task)    activation rows (of each plane) from which a panel pays
//   two_bit(bytes, n, rows), base3(bytes, n, rows)
//                          n <= 64 bytes to 4 or 5 rows of 64 digits, zeros past n; reads nothing
//                          past n
//   bits(word, row)        64 columns of a binary row, 0 or 2 each
//   interleave(rows, words, out)
//                          16 rows of 64 bytes to `words` <= 16 vectors
//   multiply<V, T>(panel, vector_bytes, q, stride, steps, sums)
//                          sums[(v * T + t) * 16 + row] of `steps` steps of four columns; they may
//                          wrap (2 * 127 * columns), the difference to sum(q) does not
//   add_scaled(sums, offset, scale, t)
//                          t[r] += scale[r] * float(sums[r] - offset), r = 0 .. 15
//   add_scaled(high, high_offset, low, low_offset, scale, t)
//                          the same with 256 * (high[r] - high_offset) + (low[r] - low_offset)
//   finish(task, token, row, count, sums, offset, scale)
//                          y of up to 16 rows from their sums, where a row has one scale
//   store(task, token, row, count, t)
//                          store_rows() of epilogue.h
//
// Include from panel_<isa>.cpp only.
#ifndef BITIMPL_CPU_PANEL_H
#define BITIMPL_CPU_PANEL_H

#include <stdint.h>
#include <string.h>

#include "epilogue.h"
#include "kernels.h"
#include "ternary_layout.h"

namespace bitimpl {
namespace {

constexpr int64_t kPanelLanes = 16;
constexpr int64_t kPanelBlocks = 4;
constexpr int64_t kMostPanelRows = kPanelBlocks * kBase3BlockRows;

[[maybe_unused]] inline int64_t panel_block_rows(const LinearTask& task) {
  return task.format == BITIMPL_BASE3 ? kBase3BlockRows : kTwoBitBlockRows;
}

// One byte a weight of the rows of a panel and 64 columns, row by row.
struct DecodedStep {
  alignas(64) uint8_t row[kMostPanelRows][kStep];
};

// Where a panel lies in scratch. A step is four columns; every segment starts with a step.
struct PanelLayout {
  int64_t vectors;        // of 16 rows
  int64_t segment_steps;
  int64_t vector_bytes;   // all components and segments of one vector
  int64_t scales;         // offset of the scales, 16 floats a vector, component and segment
  int64_t vector_scales;  // floats of one vector
  int64_t bytes;

  explicit PanelLayout(const LinearTask& task) {
    vectors = kPanelBlocks * panel_block_rows(task) / kPanelLanes;
    segment_steps = (task.segment + 3) / 4;
    vector_bytes = task.components * task.segments * segment_steps * 64;
    scales = vectors * vector_bytes;
    vector_scales = task.components * task.segments * kPanelLanes;
    bytes = scales + vectors * vector_scales * 4;
  }
};

// The last four of what an Isa provides, in plain loops that compilers turn into vector code.
struct PlainSums {
  static void add_scaled(const int32_t* sums, int32_t offset, const float* scale, float* t) {
    for (int64_t r = 0; r < kPanelLanes; ++r) {
      t[r] = t[r] + scale[r] * static_cast<float>(dot_of(sums[r], offset));
    }
  }

  static void add_scaled(const int32_t* high, int32_t high_offset, const int32_t* low,
                         int32_t low_offset, const float* scale, float* t) {
    for (int64_t r = 0; r < kPanelLanes; ++r) {
      // Exact in float64, rounded once.
      const double both = 256.0 * dot_of(high[r], high_offset) + dot_of(low[r], low_offset);
      t[r] = t[r] + scale[r] * static_cast<float>(both);
    }
  }

  static int32_t dot_of(int32_t sum, int32_t offset) {
    return static_cast<int32_t>(static_cast<uint32_t>(sum) - static_cast<uint32_t>(offset));
  }

  static void finish(const LinearTask& task, int64_t token, int64_t row, int64_t count,
                     const int32_t* sums, int32_t offset, const float* scale) {
    float t[kPanelLanes];
    for (int64_t r = 0; r < kPanelLanes; ++r) {
      // From zero, as impl.h has it: a negative scale times 0 is -0, the sum is not.
      t[r] = 0.0f + scale[r] * static_cast<float>(dot_of(sums[r], offset));
    }
    store_rows(task, token, row, count, t);
  }

  static void store(const LinearTask& task, int64_t token, int64_t row, int64_t count, const float* t) {
    store_rows(task, token, row, count, t);
  }
};

template <class Isa>
struct Panel {
  const LinearTask& task;
  PanelLayout layout;
  uint8_t* bytes;
  int64_t first_row = 0;
  int64_t rows = 0;

  Panel(const LinearTask& linear, void* scratch)
      : task(linear), layout(linear), bytes(static_cast<uint8_t*>(scratch)) {}

  int64_t vectors() const { return (rows + kPanelLanes - 1) / kPanelLanes; }

  uint8_t* at(int64_t vector, int64_t component, int64_t segment) const {
    const int64_t before = component * task.segments + segment;
    return bytes + vector * layout.vector_bytes + before * layout.segment_steps * 64;
  }
  float* scales_at(int64_t vector, int64_t component, int64_t segment) const {
    const int64_t before = component * task.segments + segment;
    return reinterpret_cast<float*>(bytes + layout.scales) + vector * layout.vector_scales +
           before * kPanelLanes;
  }

  // ---- decoding -----------------------------------------------------------------------------

  template <bool BASE3>
  void decode_ternary(int64_t component, int64_t segment, int64_t k, int64_t n, DecodedStep& out) const {
    const int64_t first_block = first_row / Format<BASE3>::kBlockRows;
    int64_t row = 0;
    for (int64_t b = 0; row < rows; ++b) {
      const Block block = block_at<BASE3>(task, first_block + b);
      const uint8_t* step = segment_codes(task, block, component, segment) + k * block.groups;
      for (int64_t g = 0; g < block.groups; ++g, row += Format<BASE3>::kRows) {
        if (BASE3) Isa::base3(step + g * n, n, out.row[row]);
        else Isa::two_bit(step + g * n, n, out.row[row]);
      }
    }
  }

  void decode_binary(int64_t component, int64_t segment, int64_t k, int64_t n, DecodedStep& out) const {
    const int64_t row_bytes = (task.cols + 7) / 8;
    const uint8_t* from =
        task.codes + (component * task.stored_rows + first_row) * row_bytes + (segment * task.segment + k) / 8;
    for (int64_t row = 0; row < rows; ++row, from += row_bytes) {
      uint64_t word = 0;
      if (n == kStep) memcpy(&word, from, 8);
      else memcpy(&word, from, static_cast<size_t>((n + 7) / 8));
      Isa::bits(word, out.row[row]);
    }
  }

  // Rows past the panel's hold anything: nobody reads their sums.
  void load() const {
    DecodedStep step;
    for (int64_t c = 0; c < task.components; ++c) {
      for (int64_t s = 0; s < task.segments; ++s) {
        const int64_t columns = segment_columns(task, s);
        for (int64_t k = 0; k < columns; k += kStep) {
          const int64_t n = columns - k < kStep ? columns - k : kStep;
          if (task.format == BITIMPL_BASE3) decode_ternary<true>(c, s, k, n, step);
          else if (task.format == BITIMPL_TWO_BIT) decode_ternary<false>(c, s, k, n, step);
          else decode_binary(c, s, k, n, step);
          for (int64_t v = 0; v < vectors(); ++v) {
            Isa::interleave(step.row[v * kPanelLanes], (n + 3) / 4, at(v, c, s) + k * kPanelLanes);
          }
        }
        load_scales(c, s);
      }
    }
  }

  void load_scales(int64_t component, int64_t segment) const {
    for (int64_t v = 0; v < vectors(); ++v) {
      float* to = scales_at(v, component, segment);
      for (int64_t r = 0; r < kPanelLanes; ++r) {
        const int64_t row = v * kPanelLanes + r;
        to[r] = row < rows ? scale_at(task, component, first_row + row, segment) : 0.0f;
      }
    }
  }

  // ---- multiplying --------------------------------------------------------------------------

  int64_t lanes_of(int64_t vector) const {
    const int64_t left = rows - vector * kPanelLanes;
    return left < kPanelLanes ? left : kPanelLanes;
  }

  // 8-bit activations and one scale a row.
  template <int V, int T>
  static void compute_plain(const Panel& panel, int64_t vector, int64_t token) {
    const Activations& x = panel.task.x;
    alignas(64) int32_t sums[V * T * kPanelLanes];
    Isa::template multiply<V, T>(panel.at(vector, 0, 0), panel.layout.vector_bytes,
                                 x.q[0] + token * x.q_stride, x.q_stride, panel.layout.segment_steps,
                                 sums);
    for (int v = 0; v < V; ++v) {
      const int64_t row = panel.first_row + (vector + v) * kPanelLanes;
      for (int t = 0; t < T; ++t) {
        Isa::finish(panel.task, token + t, row, panel.lanes_of(vector + v),
                    sums + (v * T + t) * kPanelLanes, x.sums[0][token + t],
                    panel.scales_at(vector + v, 0, 0));
      }
    }
  }

  // Any components, segments and planes.
  template <int V, int T>
  static void compute(const Panel& panel, int64_t vector, int64_t token) {
    constexpr int64_t kSums = V * T * kPanelLanes;
    const LinearTask& task = panel.task;
    const Activations& x = task.x;
    alignas(64) float total[kSums] = {};
    alignas(64) int32_t sums[2][kSums];
    for (int64_t c = 0; c < task.components; ++c) {
      for (int64_t s = 0; s < task.segments; ++s) {
        const int64_t steps = (segment_columns(task, s) + 3) / 4;
        for (int p = 0; p < x.planes; ++p) {
          const int8_t* q = x.q[p] + token * x.q_stride + s * task.segment;
          Isa::template multiply<V, T>(panel.at(vector, c, s), panel.layout.vector_bytes, q, x.q_stride,
                                       steps, sums[p]);
        }
        for (int i = 0; i < V * T; ++i) {
          const int64_t sum_at = (token + i % T) * task.segments + s;
          const float* scale = panel.scales_at(vector + i / T, c, s);
          const int32_t* high = sums[0] + i * kPanelLanes;
          float* t = total + i * kPanelLanes;
          if (x.planes == 1) {
            Isa::add_scaled(high, x.sums[0][sum_at], scale, t);
          } else {
            const int32_t* low = sums[1] + i * kPanelLanes;
            Isa::add_scaled(high, x.sums[0][sum_at], low, x.sums[1][sum_at], scale, t);
          }
        }
      }
    }
    for (int i = 0; i < V * T; ++i) {
      const int64_t v = vector + i / T;
      Isa::store(task, token + i % T, panel.first_row + v * kPanelLanes, panel.lanes_of(v),
                 total + i * kPanelLanes);
    }
  }

  // kernels[v - 1][t - 1] serves v vectors and t tokens.
  using Compute = void (*)(const Panel&, int64_t, int64_t);
  struct Table {
    Compute kernels[Isa::kVectors][Isa::kTokens];
  };

  template <bool PLAIN, int V, int T>
  static constexpr void fill(Table& table) {
    table.kernels[V - 1][T - 1] = PLAIN ? &compute_plain<V, T> : &compute<V, T>;
    if constexpr (T > 1) fill<PLAIN, V, T - 1>(table);
    else if constexpr (V > 1) fill<PLAIN, V - 1, Isa::kTokens>(table);
  }

  template <bool PLAIN>
  static constexpr Table make_table() {
    Table table = {};
    fill<PLAIN, Isa::kVectors, Isa::kTokens>(table);
    return table;
  }

  void multiply(const Tile& tile) const {
    static constexpr Table plain = make_table<true>();
    static constexpr Table any = make_table<false>();
    const Table& table = task.components * task.segments * task.x.planes == 1 ? plain : any;
    for (int64_t token = tile.token_begin; token < tile.token_end;) {
      // Equal shares: 16 tokens are 8 + 8, not 12 + 4.
      const int64_t left = tile.token_end - token;
      const int64_t shares = (left + Isa::kTokens - 1) / Isa::kTokens;
      const int64_t tokens = (left + shares - 1) / shares;
      for (int64_t vector = 0; vector < vectors(); vector += Isa::kVectors) {
        const int64_t count = vectors() - vector < Isa::kVectors ? vectors() - vector : Isa::kVectors;
        table.kernels[count - 1][tokens - 1](*this, vector, token);
      }
      token += tokens;
    }
  }
};

template <class Isa>
bool panel_serves(const LinearTask& task) {
  return task.x.planes > 0 && task.x.rows * task.x.planes >= Isa::least_vectors(task);
}

template <class Isa>
void run_panel(const LinearTask& task, const Tile& tile) {
  const int64_t step = kPanelBlocks * panel_block_rows(task);
  const int64_t end = tile.block_end * panel_block_rows(task);
  const int64_t last = end < task.rows ? end : task.rows;
  Panel<Isa> panel(task, tile.scratch);
  for (int64_t row = tile.block_begin * panel_block_rows(task); row < last; row += step) {
    panel.first_row = row;
    panel.rows = last - row < step ? last - row : step;
    panel.load();
    panel.multiply(tile);
  }
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_PANEL_H
