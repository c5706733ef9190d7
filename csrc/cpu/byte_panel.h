// Panels of bytes, for int8 activations (panel.h): one unsigned byte a weight, the digit 0, 1 or 2, for
// binary 0 or 2. Either way dot = dot(bytes, q) - sum(q). A step is four columns.
//
// What an Isa provides, besides the sums of PlainSums:
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
//
// Include from panel_<isa>.cpp only.
#ifndef BITIMPL_CPU_BYTE_PANEL_H
#define BITIMPL_CPU_BYTE_PANEL_H

#include "panel.h"

namespace bitimpl {
namespace {

// One byte a weight of the rows of a panel and 64 columns, row by row.
struct DecodedStep {
  alignas(64) uint8_t row[kMostPanelRows][kStep];
};

template <class Isa>
struct BytePanel {
  static constexpr int kVectors = Isa::kVectors;
  static constexpr int kTokens = Isa::kTokens;
  static constexpr int64_t kColumns = 4;
  static constexpr int64_t kStepBytes = 64;
  static constexpr int64_t kHeaderBytes = 0;

  using Rows = Panel<BytePanel>;

  static void load_segment(const Rows& panel, int64_t component, int64_t segment) {
    const LinearTask& task = panel.task;
    DecodedStep step;
    const int64_t columns = segment_columns(task, segment);
    for (int64_t k = 0; k < columns; k += kStep) {
      const int64_t n = columns - k < kStep ? columns - k : kStep;
      if (task.format == BITIMPL_BASE3) {
        panel.template each_group<true>(component, segment, k, n, [&](const uint8_t* bytes, int64_t row) {
          Isa::base3(bytes, n, step.row[row]);
        });
      } else if (task.format == BITIMPL_TWO_BIT) {
        panel.template each_group<false>(component, segment, k, n, [&](const uint8_t* bytes, int64_t row) {
          Isa::two_bit(bytes, n, step.row[row]);
        });
      } else {
        panel.each_word(component, segment, k, n,
                        [&](uint64_t word, int64_t row) { Isa::bits(word, step.row[row]); });
      }
      for (int64_t v = 0; v < panel.vectors(); ++v) {
        Isa::interleave(step.row[v * kPanelLanes], (n + 3) / 4,
                        panel.at(v, component, segment) + k * kPanelLanes);
      }
    }
  }

  template <bool PLAIN, int V, int T>
  static void compute(const Rows& panel, int64_t vector, int64_t token) {
    if constexpr (PLAIN) compute_plain<V, T>(panel, vector, token);
    else compute_any<V, T>(panel, vector, token);
  }

 private:
  // 8-bit activations and one scale a row.
  template <int V, int T>
  static void compute_plain(const Rows& panel, int64_t vector, int64_t token) {
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
  static void compute_any(const Rows& panel, int64_t vector, int64_t token) {
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
};

template <class Isa>
bool panel_serves(const LinearTask& task) {
  return task.x.planes > 0 && task.x.rows * task.x.planes >= Isa::least_vectors(task);
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_BYTE_PANEL_H
