// Sign activations with a border of zeros. A gathered row holds no zeros: added positions have bit
// 0, the sign -1, and put minus the sum of the tap's weights into the dot product. Adding these sums
// again leaves the dot product of the image alone, in exact integers.
#include <stdint.h>
#include <string.h>

#include "conv.h"
#include "conv_walk.h"
#include "parallel.h"
#include "quantize.h"

namespace bitimpl {
namespace {

struct TapSums {
  const KernelTable& kernels;
  const ConvPlan& plan;
  const LinearTask& task;
  int32_t* sums;  // [components][taps][rows]
};

void sum_range(void* context, int, int64_t begin, int64_t end) {
  const TapSums& t = *static_cast<const TapSums*>(context);
  const int64_t row_bytes = (t.plan.cols + 7) / 8;
  const int64_t channels = t.plan.group_channels;
  for (int64_t c = 0; c < t.task.components; ++c) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* bits = t.task.codes + (c * t.plan.rows + row) * row_bytes;
      for (int64_t tap = 0; tap < t.plan.taps; ++tap) {
        const int64_t ones = t.kernels.count_ones(bits, tap * channels, channels);
        t.sums[(c * t.plan.taps + tap) * t.plan.rows + row] = static_cast<int32_t>(2 * ones - channels);
      }
    }
  }
}

// A sink of walk().
struct Outside {
  const int32_t* sums;  // of the next tap
  int64_t stride;       // between taps
  int64_t rows;
  int32_t* out;

  void border(int64_t taps) {
    for (int64_t i = 0; i < taps; ++i, sums += stride) {
      for (int64_t r = 0; r < rows; ++r) out[r] += sums[r];
    }
  }

  void pixels(int64_t, int64_t taps) { sums += taps * stride; }
};

}  // namespace

void sum_taps(const KernelTable& kernels, const ConvPlan& plan, const LinearTask& task,
              const ConvLayout& layout, char* base, int threads) {
  TapSums sums = {kernels, plan, task, reinterpret_cast<int32_t*>(base + layout.tap_sums)};
  const double work = static_cast<double>(task.components) * static_cast<double>(plan.rows) *
                      (8.0 * static_cast<double>(plan.taps) + static_cast<double>(plan.cols) / 8.0);
  parallel_ranges(plan.rows, 1, work, threads, sum_range, &sums);
}

void find_outside(const ConvPlan& plan, const ConvLayout& layout, const char* base, char* scratch,
                  const Run* runs, int64_t count, int64_t components, int64_t row, int64_t rows) {
  const int32_t* sums = reinterpret_cast<const int32_t*>(base + layout.tap_sums) + row;
  const int64_t read_rows = round_up(rows, 2 * kBinaryBlockRows);  // by the widest kernel
  int32_t* tables = reinterpret_cast<int32_t*>(scratch + layout.outside);
  const int32_t** at = reinterpret_cast<const int32_t**>(scratch + layout.outside_at);
  for (int64_t i = 0; i < count; ++i) {
    const Run& run = runs[i];
    const int32_t* shared = nullptr;  // by the tokens that see every tap of the width
    for (int64_t t = 0; t < run.count; ++t) {
      const int64_t token = run.token + t;
      const bool inside = t >= run.inside_begin && t < run.inside_end;
      at[token] = shared;
      if (inside && (run.whole || shared != nullptr)) continue;
      int32_t* table = tables + token * components * kChunkRows;
      for (int64_t c = 0; c < components; ++c) {
        memset(table + c * kChunkRows, 0, static_cast<size_t>(read_rows) * sizeof *table);
        Outside outside = {sums + c * plan.taps * plan.rows, plan.rows, rows, table + c * kChunkRows};
        walk(plan, run, t, outside);
      }
      at[token] = table;
      if (inside) shared = table;
    }
  }
}

}  // namespace bitimpl
