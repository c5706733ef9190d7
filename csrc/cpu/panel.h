// GEMM over panels: decode a panel of weight rows once, use it for every activation row.
//
// A panel holds four row blocks (80 rows of base3, 64 of the other formats). A vector is 16 rows x the
// columns of one step, one row a dword, and the vectors of the same 16 rows follow each other along the
// columns, so that activations broadcast to all dwords serve 16 rows. Decoding and loading are shared by
// the activation rows of a batch and stand in nobody's way.
//
// byte_panel.h keeps weights as bytes, for int8 activations; bit_panel.h as bits, for bits. What either, a
// Kernel, provides:
//   kVectors, kTokens      vectors and activation rows of one inner product
//   kColumns               of a step
//   kStepBytes             of a vector's step
//   kHeaderBytes           in front of the steps of a vector and segment, a multiple of 64
//   load_segment(panel, c, s)
//                          fills the vectors' headers and steps of component c and segment s
//   compute<PLAIN, V, T>(panel, vector, token)
//                          y of V vectors and T activation rows; PLAIN: there is one component, segment
//                          and plane of activations
//
// Include from panel_<isa>.cpp and bit_panel_<isa>.cpp only.
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
// Bytes between what is decoded and its prefetch: four blocks are read side by side.
constexpr int64_t kAhead = 1024;
constexpr int64_t kMostPanelRows = kPanelBlocks * kBase3BlockRows;

[[maybe_unused]] inline int64_t panel_block_rows(const LinearTask& task) {
  return task.format == BITIMPL_BASE3 ? kBase3BlockRows : kTwoBitBlockRows;
}

// Where a panel lies in scratch. Every segment starts with a step.
template <class Kernel>
struct PanelLayout {
  int64_t vectors;        // of 16 rows
  int64_t segment_steps;
  int64_t segment_bytes;  // of one vector
  int64_t vector_bytes;   // all components and segments of one vector
  int64_t scales;         // offset of the scales, 16 floats a vector, component and segment
  int64_t vector_scales;  // floats of one vector
  int64_t bytes;

  explicit PanelLayout(const LinearTask& task) {
    vectors = kPanelBlocks * panel_block_rows(task) / kPanelLanes;
    segment_steps = (task.segment + Kernel::kColumns - 1) / Kernel::kColumns;
    segment_bytes = Kernel::kHeaderBytes + segment_steps * Kernel::kStepBytes;
    vector_bytes = task.components * task.segments * segment_bytes;
    scales = vectors * vector_bytes;
    vector_scales = task.components * task.segments * kPanelLanes;
    bytes = scales + vectors * vector_scales * 4;
  }
};

// What happens to the sums of a vector, in plain loops that compilers turn into vector code; an instruction
// set may bring its own.
//   add_scaled(sums, offset, scale, t)
//                          t[r] += scale[r] * float(sums[r] - offset), r = 0 .. 15
//   add_scaled(high, high_offset, low, low_offset, scale, t)
//                          the same with 256 * (high[r] - high_offset) + (low[r] - low_offset)
//   finish(task, token, row, count, sums, offset, scale)
//                          y of up to 16 rows from their sums, where a row has one scale
//   store(task, token, row, count, t)
//                          store_rows() of epilogue.h
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

template <class Kernel>
struct Panel {
  const LinearTask& task;
  PanelLayout<Kernel> layout;
  uint8_t* bytes;
  int64_t first_row = 0;
  int64_t rows = 0;

  Panel(const LinearTask& linear, void* scratch)
      : task(linear), layout(linear), bytes(static_cast<uint8_t*>(scratch)) {}

  int64_t vectors() const { return (rows + kPanelLanes - 1) / kPanelLanes; }

  int64_t lanes_of(int64_t vector) const {
    const int64_t left = rows - vector * kPanelLanes;
    return left < kPanelLanes ? left : kPanelLanes;
  }

  // The header of a vector, component and segment; its steps follow.
  uint8_t* at(int64_t vector, int64_t component, int64_t segment) const {
    const int64_t before = component * task.segments + segment;
    return bytes + vector * layout.vector_bytes + before * layout.segment_bytes;
  }
  float* scales_at(int64_t vector, int64_t component, int64_t segment) const {
    const int64_t before = component * task.segments + segment;
    return reinterpret_cast<float*>(bytes + layout.scales) + vector * layout.vector_scales +
           before * kPanelLanes;
  }

  // ---- decoding -----------------------------------------------------------------------------

  // Calls visit(bytes, row) for each row group of the panel: the n <= 64 bytes from column k of the
  // segment on, the first of its rows.
  template <bool BASE3, class Visit>
  void each_group(int64_t component, int64_t segment, int64_t k, int64_t n, Visit visit) const {
    const int64_t first_block = first_row / Format<BASE3>::kBlockRows;
    int64_t row = 0;
    for (int64_t b = 0; row < rows; ++b) {
      const Block block = block_at<BASE3>(task, first_block + b);
      const uint8_t* step = segment_codes(task, block, component, segment) + k * block.groups;
      for (int64_t g = 0; g < block.groups; ++g, row += Format<BASE3>::kRows) {
        __builtin_prefetch(step + g * n + kAhead);
        visit(step + g * n, row);
      }
    }
  }

  // Calls visit(word, row) for each binary row: the n <= 64 bits from column k of the segment on, anything
  // after them.
  template <class Visit>
  void each_word(int64_t component, int64_t segment, int64_t k, int64_t n, Visit visit) const {
    const int64_t row_bytes = (task.cols + 7) / 8;
    const uint8_t* from =
        task.codes + (component * task.stored_rows + first_row) * row_bytes + (segment * task.segment + k) / 8;
    for (int64_t row = 0; row < rows; ++row, from += row_bytes) {
      // The same place in the next panel: as many short streams as rows are too many for hardware.
      __builtin_prefetch(from + rows * row_bytes);
      uint64_t word = 0;
      if (n == kStep) memcpy(&word, from, 8);
      else memcpy(&word, from, static_cast<size_t>((n + 7) / 8));
      visit(word, row);
    }
  }

  // Rows past the panel's hold anything: nobody reads their sums.
  void load() const {
    for (int64_t c = 0; c < task.components; ++c) {
      for (int64_t s = 0; s < task.segments; ++s) {
        Kernel::load_segment(*this, c, s);
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

  // kernels[v - 1][t - 1] serves v vectors and t tokens.
  using Compute = void (*)(const Panel&, int64_t, int64_t);
  struct Table {
    Compute kernels[Kernel::kVectors][Kernel::kTokens];
  };

  template <bool PLAIN, int V, int T>
  static constexpr void fill(Table& table) {
    table.kernels[V - 1][T - 1] = &Kernel::template compute<PLAIN, V, T>;
    if constexpr (T > 1) fill<PLAIN, V, T - 1>(table);
    else if constexpr (V > 1) fill<PLAIN, V - 1, Kernel::kTokens>(table);
  }

  template <bool PLAIN>
  static constexpr Table make_table() {
    Table table = {};
    fill<PLAIN, Kernel::kVectors, Kernel::kTokens>(table);
    return table;
  }

  void multiply(const Tile& tile) const {
    static constexpr Table plain = make_table<true>();
    static constexpr Table any = make_table<false>();
    const Table& table = task.components * task.segments == 1 && task.x.planes < 2 ? plain : any;
    for (int64_t token = tile.token_begin; token < tile.token_end;) {
      // Equal shares: 16 tokens are 8 + 8, not 12 + 4.
      const int64_t left = tile.token_end - token;
      const int64_t shares = (left + Kernel::kTokens - 1) / Kernel::kTokens;
      const int64_t tokens = (left + shares - 1) / shares;
      for (int64_t vector = 0; vector < vectors(); vector += Kernel::kVectors) {
        const int64_t count = vectors() - vector < Kernel::kVectors ? vectors() - vector : Kernel::kVectors;
        table.kernels[count - 1][tokens - 1](*this, vector, token);
      }
      token += tokens;
    }
  }
};

template <class Kernel>
void run_panel(const LinearTask& task, const Tile& tile) {
  const int64_t step = kPanelBlocks * panel_block_rows(task);
  const int64_t end = tile.block_end * panel_block_rows(task);
  const int64_t last = end < task.rows ? end : task.rows;
  Panel<Kernel> panel(task, tile.scratch);
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
