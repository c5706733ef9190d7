// How small_batch.cu shares its work among warps and blocks, and what each way would cost.
#ifndef BITIMPL_CUDA_SMALL_BATCH_PLAN_CUH
#define BITIMPL_CUDA_SMALL_BATCH_PLAN_CUH

#include "mma.cuh"
#include "runtime.h"

namespace bitimpl {
namespace cuda {
namespace small_batch {

constexpr int kWarps = 8;

// How the work is shared. Depends on sizes and the device alone.
struct Plan {
  int32_t products;   // of eight columns, in a warp: 2, 4 or 8
  bool by_unit;       // warps take whole units and keep sums of floats
  int32_t row_warps;  // warps side by side in rows; the kWarps / row_warps others share the columns
  int32_t splits;     // blocks that share the columns of a tile
  int32_t chunks;     // parts of a unit whose sums of operands stay within int32
  int64_t row_tiles;
  int64_t column_tiles;
  bool direct;  // the block has the whole sum: nothing is left to finish
};

// Sums of blocks, from which finish_kernel makes y: [split][unit][column][row], rows and columns rounded up
// to tiles; integers, or floats and one unit.
struct Partial {
  uint32_t* at;
  int32_t units;
  int64_t columns;
  int64_t rows;
};

// Products of a warp whose sums fit into registers, beside the sums of floats where there are some.
constexpr int most_products(int32_t format, bool by_unit) {
  return (format == BITIMPL_BASE3 ? 4 : 8) / (by_unit ? 2 : 1);
}

// Bytes that a multiprocessor moves for a plan, everything that takes time put in bytes: the least is the
// best.
inline double cost(const LinearTask& task, const Device& device, const Plan& plan) {
  const Weight& w = task.weight;
  const double blocks = static_cast<double>(plan.row_tiles) * plan.column_tiles * plan.splits;
  const double waves = ceil(blocks / device.multiprocessors);
  const int32_t column_warps = kWarps / plan.row_warps;
  const int32_t units = w.components * w.segments;
  // Of the warp with the longest share, for all that share the columns.
  const int64_t steps =
      column_warps * (plan.by_unit ? ceil_div<int64_t>(ceil_div(units, plan.splits), column_warps) * w.segment_steps
                                   : ceil_div<int64_t>(w.steps, plan.splits * column_warps) * w.components);
  const double of_step = plan.row_warps * kTileGroups * kStep + plan.products * kTileTokens * kStep;
  const double rows = static_cast<double>(plan.row_warps) * kTileGroups * w.per_byte;
  const double outputs = rows * plan.products * kTileTokens;
  constexpr double kOfLaunch = 60e3;  // another kernel, some 1.5 us
  const double kept = plan.direct ? 0.0 : outputs * (plan.by_unit ? 1 : units) * 2 * sizeof(uint32_t) + kOfLaunch;
  return waves * static_cast<double>(steps) * of_step + kept;
}

inline Plan plan_of(const LinearTask& task, const Device& device) {
  const Weight& w = task.weight;
  const int64_t products = product_columns(task.x) / kTileTokens;
  Plan plan = {};
  plan.by_unit = w.segments > 1 && w.segment <= most_columns(w.format);
  plan.products = 2;
  while (plan.products < products && plan.products < most_products(w.format, plan.by_unit)) plan.products *= 2;
  plan.column_tiles = ceil_div<int64_t>(products, plan.products);
  const int64_t tiles = ceil_div<int64_t>(w.groups, kTileGroups);
  const int32_t units = w.components * w.segments;
  const int32_t most_splits = plan.by_unit ? units : w.segment_steps;
  constexpr int32_t kMostSplits = 16;
  Plan best = {};
  double least_cost = 0.0;
  for (plan.row_warps = 1; plan.row_warps <= kWarps; plan.row_warps *= 2) {
    plan.row_tiles = ceil_div<int64_t>(tiles, plan.row_warps);
    const int32_t column_warps = kWarps / plan.row_warps;
    for (plan.splits = 1; plan.splits <= least(kMostSplits, most_splits); ++plan.splits) {
      const int64_t chunk = most_columns(w.format) / kStep * column_warps;
      const int64_t share = ceil_div<int64_t>(w.segment_steps, plan.splits);
      plan.chunks = plan.by_unit ? 1 : static_cast<int32_t>(ceil_div(share, chunk));
      plan.direct = plan.splits == 1 && plan.chunks == 1 && (plan.by_unit || units == 1);
      const double now = cost(task, device, plan);
      if (best.row_warps == 0 || now < least_cost) {
        best = plan;
        least_cost = now;
      }
    }
  }
  return best;
}

inline Partial partial_of(const LinearTask& task, const Plan& plan, void* memory) {
  const Weight& w = task.weight;
  return {static_cast<uint32_t*>(memory), plan.by_unit ? 1 : w.components * w.segments,
          plan.column_tiles * plan.products * kTileTokens,
          plan.row_tiles * plan.row_warps * kTileGroups * w.per_byte};
}

}  // namespace small_batch
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_SMALL_BATCH_PLAN_CUH
