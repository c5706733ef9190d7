// Products of bits on Hopper: both operands in shared memory by copies of boxes, products of 64 tokens by
// wgmma. Two warpgroups multiply, each 64 tokens of a tile with all its rows of the weight; a third copies
// (one thread) and prepares what belongs to the rows (three warps). Blocks stay and take tile after tile.
//
// It takes what is a matrix in effect: linear layers, and convolutions of single pixels. Where a row has one
// sum (one component, one segment) a tile is 128 tokens x 256 rows; else the sums of every unit are scaled
// and added up, which takes as many registers again: 128 x 128, as it is where there are few tiles.
#include "bit_kernels.h"
#include "bgmma_intervals.cuh"
#include "bgmma_tile.cuh"

namespace bitimpl {
namespace cuda {
namespace {

using namespace bgmma;

constexpr int kThreads = (kConsumers + 1) * kGroupWarps * kWarp;
constexpr int kProducts = kConsumers * kGroupWarps;     // warps that multiply
// Of 65536 registers, after those of the warpgroup that prepares: multiples of 8.
constexpr int kPreparingRegisters = 40;
constexpr int kProductRegisters = 232;

template <int COLUMNS, Out OUT>
__global__ void __launch_bounds__(kThreads, 1) bgmma_kernel(const __grid_constant__ Job job) {
  const Stages<COLUMNS> stages;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Stages<COLUMNS>::kCount; ++stage) {
      init_barrier(stages.full + stage, 1);
      init_barrier(stages.empty + stage, kProducts);
    }
    for (int buffer = 0; buffer < kConstantBuffers; ++buffer) {
      init_barrier(stages.known + buffer, kPutters);
      init_barrier(stages.used + buffer, kProducts);
    }
    show_barriers();
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (warp >= kProducts) {
    keep_registers<kPreparingRegisters>();
    if (warp == kProducts) {
      copy_operands<COLUMNS>(job, stages);
    } else {
      put_constants<COLUMNS>(job, stages, warp - kProducts - 1);
    }
  } else {
    take_registers<kProductRegisters>();
    Consumer<COLUMNS, OUT>(job, stages).run();
  }
}

// ---- host ------------------------------------------------------------------------------------------------

constexpr int kArchitecture = 90;
constexpr int64_t kMostRows = int64_t{1} << 30;

int64_t token_tiles(const BitTask& task) { return ceil_div<int64_t>(positions_of(task), kTileTokens); }
int64_t weight_tiles(const BitTask& task, int columns) {
  return ceil_div<int64_t>(task.weight.rows, columns);
}

const char* refuses(const BitTask& task, const Device& device) {
  if (device.architecture != kArchitecture) return "it needs a device of architecture 9.0";
  if (!is_matrix(task) || task.groups > 1) return "it takes linear layers and convolutions of single pixels";
  if (task.chunk_words != kChunkWords) return "it takes convolutions of more than 64 channels";
  if (task.weight.segments > 1 && task.segment_words % kLineWords != 0) {
    return "it takes scale groups of whole lines: multiples of 1024 columns, or of 256 of ternary weights";
  }
  if (positions_of(task) > kMostRows || task.weight.components * task.weight.rows > kMostRows) {
    return "it counts up to 2^30 tokens and as many rows of all components";
  }
  return nullptr;
}

// How many rows of the weight a tile has, see above.
int columns_of(const BitTask& task, const Device& device) {
  const int64_t tiles = weight_tiles(task, kColumns) * token_tiles(task);
  return units_of(task) == 1 && 2 * tiles > device.multiprocessors ? kColumns : kUnitColumns;
}

// Tiles for half of the device, tokens and rows for most of one, and enough columns that what a tile costs at
// its ends is less than its products.
bool prefers(const BitTask& task, const Device& device) {
  const int64_t tiles = weight_tiles(task, kUnitColumns) * token_tiles(task);
  const bool fills = 4 * positions_of(task) >= 3 * kTileTokens && 4 * task.weight.rows >= 3 * kUnitColumns;
  return planes_pay(task, device) && fills && task.tap_words >= kLineWords && 2 * tiles >= device.multiprocessors;
}

int needs(const BitTask&, const Device&) { return kNeedsRows | kNeedsCounts | kNeedsWords; }

// Whether the signs of tokens whose scale is 1 can be told by the dot product alone: where a row has one sum.
bool has_intervals(const BitTask& task, const Device& device) { return columns_of(task, device) == kColumns; }

int64_t scratch(const BitTask& task, const Device& device) {
  return has_intervals(task, device) ? task.weight.rows * static_cast<int64_t>(sizeof(Interval)) : 0;
}

template <int COLUMNS, Out OUT>
int start(const Job& job, const Device& device, Stream stream) {
  const int64_t tiles = job.weight_tiles * job.token_tiles;
  const Grid grid = {{static_cast<uint32_t>(least<int64_t>(tiles, device.multiprocessors))}, {kThreads},
                     Stages<COLUMNS>::kAll, stream};
  return launch(bgmma_kernel<COLUMNS, OUT>, grid, job);
}

template <int COLUMNS>
int start(const BitTask& task, const Device& device, Stream stream, Interval* intervals) {
  Job job = {{}, {}, task, intervals, positions_of(task), weight_tiles(task, COLUMNS), token_tiles(task)};
  int status = describe_tensor({task.x, job.tokens, task.tap_words, task.pixel_words}, kTileTokens, &job.x);
  if (status != BITIMPL_OK) return status;
  const int64_t rows = task.weight.components * task.weight.rows;
  status = describe_tensor({task.w, rows, task.tap_words, task.row_words}, COLUMNS, &job.w);
  if (status == BITIMPL_OK && intervals != nullptr) {
    const int64_t blocks = ceil_div<int64_t>(task.weight.rows, kIntervalThreads);
    const Grid grid = {{static_cast<uint32_t>(blocks)}, {kIntervalThreads}, 0, stream};
    status = launch(bgmma_interval_kernel, grid, task, intervals);
  }
  if (status != BITIMPL_OK) return status;
  switch (task.result.dtype) {
    case BITIMPL_SIGNS: return start<COLUMNS, Out::kSigns>(job, device, stream);
    case BITIMPL_F32: return start<COLUMNS, Out::kFloat>(job, device, stream);
    default: return start<COLUMNS, Out::kHalf>(job, device, stream);
  }
}

int run(const BitTask& task, const Device& device, Stream stream, void* scratch) {
  const bool signs = task.result.dtype == BITIMPL_SIGNS && has_intervals(task, device);
  Interval* intervals = signs ? static_cast<Interval*>(scratch) : nullptr;
  return columns_of(task, device) == kColumns ? start<kColumns>(task, device, stream, intervals)
                                              : start<kUnitColumns>(task, device, stream, intervals);
}

}  // namespace

const BitKernel kBgmma = {"bgmma", refuses, prefers, needs, scratch, run, true};

}  // namespace cuda
}  // namespace bitimpl
