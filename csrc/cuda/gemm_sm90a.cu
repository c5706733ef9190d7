// Many tokens on Hopper: products of 64 rows by wgmma, the decoded weights in registers, the activations in
// shared memory by bulk copies. Two warpgroups multiply, each with 64 row groups of its own: product j of a
// step holds digit j of each of them, so that a thread ends with whole row groups, 4 or 5 rows that lie side
// by side. A third warpgroup copies. Blocks stay and take tile after tile; codes are loaded two steps ahead.
//
// Where a row has one scale (and one component) the sums of a tile are integers to its end: 64 columns. Else
// they are scaled and added up after every segment, which takes as many registers again: 32 columns. So are
// rows that are no whole steps, or lie unaligned. With INT16 a column is one of an activation's two planes;
// base3 has no registers to join the planes of 64.
#include "kernels.h"
#include "wgmma_loads.cuh"
#include "wgmma_tile.cuh"

namespace bitimpl {
namespace cuda {
namespace {

using namespace wgmma;

constexpr int kThreads = (kConsumers + 1) * kGroupWarps * kWarp;
// Of 65536 registers, after those of the warpgroup that copies: multiples of 8.
constexpr int kCopyRegisters = 24;
constexpr int kProductRegisters = 240;

template <int FORMAT, int COLUMNS, int PLANES>
__global__ void __launch_bounds__(kThreads, 1) wgmma_kernel(Job job) {
  const Stages<COLUMNS> stages;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(stages.full + stage, 1);
      init_barrier(stages.empty + stage, kConsumers * kGroupWarps);
    }
    show_barriers();
  }
  __syncthreads();
  if (threadIdx.x / kWarp >= kConsumers * kGroupWarps) {
    keep_registers<kCopyRegisters>();
    if (threadIdx.x / kWarp == kConsumers * kGroupWarps) copy_activations<COLUMNS, PLANES>(job, stages);
  } else {
    take_registers<kProductRegisters>();
    Consumer<FORMAT, COLUMNS, PLANES>(job, stages).run();
  }
}

// ---- host ------------------------------------------------------------------------------------------------

constexpr int kArchitecture = 90;
constexpr int64_t kAlignment = 256;
constexpr int64_t kMostTokens = int64_t{1} << 30;

// How many at a time, see above.
int columns_of(const LinearTask& task) {
  const Weight& w = task.weight;
  const bool at_once = w.components == 1 && w.segments == 1 && has_whole_steps(w) &&
                       reinterpret_cast<uintptr_t>(w.codes) % 16 == 0 &&
                       (w.format == BITIMPL_TWO_BIT || task.x.planes == 1);
  return at_once ? kColumns : kSegmentedColumns;
}

int64_t weight_tiles(const Weight& w) { return ceil_div<int64_t>(w.groups, kTileGroups); }
int64_t token_tiles(const LinearTask& task) {
  return ceil_div<int64_t>(task.x.rows, tile_tokens(columns_of(task), task.x.planes));
}

const char* refuses(const LinearTask& task, const Device& device) {
  if (device.architecture != kArchitecture) return "it needs a device of architecture 9.0";
  if (task.source.activation == BITIMPL_ACTIVATION_FLOAT) return "it takes quantised activations";
  if (task.x.rows > kMostTokens) return "it counts up to 2^30 tokens";
  if (task.weight.format == BITIMPL_TWO_BIT && task.weight.segment > Digits<BITIMPL_TWO_BIT>::kMostColumns) {
    return "its sums of two_bit weights hold 131072 columns";
  }
  return nullptr;
}

// Tiles for half of the device (products twice as fast as those of mma.sync make up for the rest), and tokens
// for most of one.
bool prefers(const LinearTask& task, const Device& device) {
  const int tokens = tile_tokens(columns_of(task), task.x.planes);
  const int64_t tiles = weight_tiles(task.weight) * token_tiles(task);
  return 4 * task.x.rows >= 3 * tokens && 2 * tiles >= device.multiprocessors;
}

bool quantises(const LinearTask& task, const Device&) { return !task.x.prepared; }
int32_t tile(const LinearTask& task) { return tile_tokens(columns_of(task), task.x.planes); }

// Gives the activations their memory, tile by tile; returns how much it is, whatever the alignment of the
// codes.
int64_t divide(LinearTask* task, char* memory) {
  Tokens& x = task->x;
  x.tile = tile(*task);
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    char* at = memory == nullptr ? nullptr : memory + used;
    used += round_up(bytes, kAlignment);
    return at;
  };
  for (int plane = 0; plane < x.planes; ++plane) {
    x.q[plane] = reinterpret_cast<int8_t*>(take(round_up<int64_t>(x.rows, kColumns) * x.row_bytes));
    x.sums[plane] = reinterpret_cast<int32_t*>(
        take(x.rows * task->weight.segments * static_cast<int64_t>(sizeof(int32_t))));
  }
  x.scale = reinterpret_cast<float*>(take(x.rows * static_cast<int64_t>(sizeof(float))));
  return used;
}

int64_t scratch(const LinearTask& task, const Device&) {
  if (task.x.prepared) return 0;
  LinearTask copy = task;
  return divide(&copy, nullptr);
}

template <int FORMAT, int COLUMNS, int PLANES>
int start(const Job& job, const Device& device, Stream stream) {
  const int64_t tiles = job.weight_tiles * job.token_tiles;
  const Grid grid = {{static_cast<uint32_t>(least<int64_t>(tiles, device.multiprocessors))}, {kThreads},
                     Stages<COLUMNS>::kAll, stream};
  return launch(wgmma_kernel<FORMAT, COLUMNS, PLANES>, grid, job);
}

int run(const LinearTask& task, const Device& device, Stream stream, void* scratch) {
  Job job = {task, weight_tiles(task.weight), token_tiles(task)};
  if (!task.x.prepared) {
    divide(&job.task, static_cast<char*>(scratch));
    const int status = quantize(job.task, stream);
    if (status != BITIMPL_OK) return status;
  }
  const bool base3 = task.weight.format == BITIMPL_BASE3;
  const bool two = task.x.planes == 2;
  if (columns_of(task) == kColumns) {
    if (base3) return start<BITIMPL_BASE3, kColumns, 1>(job, device, stream);
    return two ? start<BITIMPL_TWO_BIT, kColumns, 2>(job, device, stream)
               : start<BITIMPL_TWO_BIT, kColumns, 1>(job, device, stream);
  }
  if (base3) {
    return two ? start<BITIMPL_BASE3, kSegmentedColumns, 2>(job, device, stream)
               : start<BITIMPL_BASE3, kSegmentedColumns, 1>(job, device, stream);
  }
  return two ? start<BITIMPL_TWO_BIT, kSegmentedColumns, 2>(job, device, stream)
             : start<BITIMPL_TWO_BIT, kSegmentedColumns, 1>(job, device, stream);
}

}  // namespace

const LinearKernel kWgmma = {"wgmma", refuses, prefers, quantises, scratch, run, true, tile};

}  // namespace cuda
}  // namespace bitimpl
