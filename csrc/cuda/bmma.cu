// Products of bits on tensor cores of any architecture: mma.sync m16n8k256, set bits of x & w. Linear layers and
// convolutions alike: windows are gathered word by word on their way to shared memory (implicit GEMM), some steps
// ahead of the products.
#include "bit_kernels.h"
#include "bmma_store.cuh"

namespace bitimpl {
namespace cuda {
namespace {

//                          warps    products
using Large = BlockShape<4, 2, 1, 4, 8, 2, 3, 1>;   // 256 positions x 128 rows
using Medium = BlockShape<2, 2, 1, 4, 8, 2, 3, 2>;  // 128 x 128
using Small = BlockShape<2, 2, 1, 2, 4, 2, 4, 3>;   // 64 x 64
using Few = BlockShape<1, 1, 4, 2, 4, 4, 6, 3>;     // 32 x 32: four warps share the columns

template <class S, int CHUNK, bool WINDOWS, bool ONE_UNIT>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) bmma_kernel(BitTask task, BmmaPlan plan) {
  Tables<S>& tables = *shared_memory<Tables<S>>();
  const BmmaBlock block = bmma_block<S>(plan);
  const BmmaLane lane = bmma_lane<S>();
  place_lines<S>(task, plan, block, tables);
  __syncthreads();

  Copies<S, CHUNK, WINDOWS, ONE_UNIT> copies;
  copies.begin_unit(task, block, 0);
  uint32_t* to = tables.stages;
  const auto next = [&](auto* stage) {
    stage += S::kStageWords;
    return stage == tables.stages + S::kStages * S::kStageWords ? stage - S::kStages * S::kStageWords : stage;
  };
  // A group of copies each time, empty at the end, so that counting groups counts steps.
  const auto begin_step = [&] {
    copies.begin_step(task, block, tables, to);
    commit_copies();
    to = next(to);
  };
  for (int i = 0; i < S::kStages - 1; ++i) begin_step();
  count_windows<S>(task, block, tables);  // seen by others from the first step's barrier on
  describe_rows<S, ONE_UNIT>(task, block, tables);

  int32_t sums[S::kTilesM][S::kTilesN][4];
  float t[ONE_UNIT ? 1 : S::kTilesM][ONE_UNIT ? 1 : S::kTilesN][4];
  clear(sums);
  clear(t);
  const uint32_t* stage = tables.stages;
  const int32_t units = ONE_UNIT ? 1 : units_of(task);
  for (int32_t index = 0; index < units; ++index) {
    const BitUnit unit = bit_unit_at(task, index);
    for (int32_t words = task.windows.taps * unit.words; words > 0; words -= S::kStepWords) {
      wait_for_copies<S::kStages - 2>();
      __syncthreads();
      begin_step();  // where the step before this one was, which all warps have left
      multiply_step<S>(stage, words, lane, sums);
      stage = next(stage);
    }
    if constexpr (S::kWarpsK > 1) add_slices<S>(tables, lane, sums);
    if constexpr (!ONE_UNIT) {
      if (lane.k == 0) add_unit<S>(task, plan, block, lane, tables, unit, sums, t);
      clear(sums);
    }
  }
  if (lane.k > 0) return;
  if constexpr (ONE_UNIT) {
    const auto row_of = [&](int j) { return four_rows<S>(plan, lane, j / 4) + j % 4; };
    to_dots<S>(task, plan, block, lane, tables, bit_unit_at(task, 0), [&](int j) { return tables.of_row[row_of(j)]; },
               sums);
    store_tile<S>(task, plan, block, lane, tables, [&](int i, int j) {
      return 0.0f + tables.scale[row_of(j)] * static_cast<float>(element<S>(sums, i, j));
    });
  } else {
    store_tile<S>(task, plan, block, lane, tables, [&](int i, int j) { return element<S>(t, i, j); });
  }
}

// ---- which blocks --------------------------------------------------------------------------------------

enum class Blocks { kLarge, kMedium, kSmall, kFew };

bool is_one_unit(const BitTask& task) { return units_of(task) == 1; }

template <class S>
int64_t tiles_of(const BitTask& task) {
  return ceil_div<int64_t>(positions_of(task), S::kPositions) * ceil_div<int64_t>(task.group_rows, S::kRows) *
         task.groups;
}

// What the multiprocessor with most blocks computes, over the rate it does that at (which for small blocks is what the
// second cache brings), and what begins and ends a block, in columns: less where other blocks multiply meanwhile.
template <class S>
double cost_of(const BitTask& task, const Device& device, double rate) {
  constexpr double kAlone = 2500.0, kBeside = 500.0;
  const double columns = 32.0 * task.windows.taps * task.tap_words;
  const int64_t most_tiles = ceil_div<int64_t>(tiles_of<S>(task), device.multiprocessors);
  return static_cast<double>(most_tiles) * S::kPositions * S::kRows *
         (columns / rate + (S::kBlocks == 1 ? kAlone : kBeside));
}

Blocks blocks_for(const BitTask& task, const Device& device) {
  if (positions_of(task) <= Few::kPositions) return Blocks::kFew;  // bound by the words of the weight
  Blocks best = Blocks::kFew;
  double least_cost = cost_of<Few>(task, device, 0.25);
  const auto try_one = [&](Blocks blocks, double cost) {
    if (cost >= least_cost) return;
    best = blocks;
    least_cost = cost;
  };
  try_one(Blocks::kSmall, cost_of<Small>(task, device, 0.5));
  if (is_one_unit(task)) try_one(Blocks::kMedium, cost_of<Medium>(task, device, 0.75));
  if (is_one_unit(task) && task.chunk_words == kChunkWords) try_one(Blocks::kLarge, cost_of<Large>(task, device, 1.0));
  return best;
}

// How four positions or rows can be stored at once.
Stores stores_of(const BitTask& task) {
  const BitResult& r = task.result;
  const Windows& v = task.windows;
  const int bytes = r.dtype == BITIMPL_F32 ? 4 : 2;
  if (reinterpret_cast<uintptr_t>(r.y) % (4 * bytes) != 0 || r.sample_stride % 4 != 0) return kOneByOne;
  const auto step = [&](int d) { return v.out[d] > 1 ? r.spatial_stride[d] : 0; };  // of no other do strides count
  if (r.channel_stride == 1) {
    const bool whole = step(0) % 4 == 0 && step(1) % 4 == 0 && step(2) % 4 == 0;
    return whole && (task.groups == 1 || task.group_rows % 4 == 0) ? kByRow : kOneByOne;
  }
  const bool dense = step(2) == 1 && (v.out[1] == 1 || step(1) == v.out[2]) &&
                     (v.out[0] == 1 || step(0) == int64_t{v.out[1]} * v.out[2]);
  return dense && r.channel_stride % 4 == 0 && v.positions % 4 == 0 ? kByPosition : kOneByOne;
}

template <class S>
BmmaPlan plan_of(const BitTask& task) {
  BmmaPlan plan = {};
  plan.positions = static_cast<int32_t>(positions_of(task));
  plan.position_tiles = ceil_div(plan.positions, static_cast<int32_t>(S::kPositions));
  plan.row_tiles = static_cast<int32_t>(ceil_div<int64_t>(task.group_rows, S::kRows));
  const bool signs = task.result.dtype == BITIMPL_SIGNS;
  plan.stores = signs ? kOneByOne : stores_of(task);
  const bool fours = plan.stores == kByPosition;
  plan.fours_step = 32;
  plan.one_step = fours ? 1 : 8;
  plan.lane_step = fours ? 4 : 1;
  plan.four_rows_step = signs ? 4 : 16;
  plan.lane_rows_step = signs ? 8 : 4;
  return plan;
}

template <class S, int CHUNK, bool WINDOWS, bool ONE_UNIT>
int start(const BitTask& task, Stream stream) {
  static_assert(sizeof(Tables<S>) <= 99 * 1024, "what a block can have on every architecture from 8.0 on");
  const Grid grid = {{static_cast<uint32_t>(tiles_of<S>(task))}, {S::kThreads}, sizeof(Tables<S>), stream};
  return launch(bmma_kernel<S, CHUNK, WINDOWS, ONE_UNIT>, grid, task, plan_of<S>(task));
}

template <class S, bool ONE_UNIT>
int start_windows(const BitTask& task, Stream stream) {
  if (task.chunk_words == 1) return start<S, 1, true, ONE_UNIT>(task, stream);
  if (task.chunk_words == 2) return start<S, 2, true, ONE_UNIT>(task, stream);
  return start<S, kChunkWords, true, ONE_UNIT>(task, stream);
}

// ---- what the host side knows of it ----------------------------------------------------------------------

// Whether every place in or around an image is a number of 32 bits.
bool has_near_places(const BitTask& task) {
  const Windows& v = task.windows;
  if (v.pixels > INT32_MAX || positions_of(task) > INT32_MAX - Large::kPositions) return false;
  for (int d = 0; d < 3; ++d) {
    const double begin = static_cast<double>(v.out[d]) * v.stride[d] + v.before[d];
    const double window = (static_cast<double>(v.kernel[d]) + Few::kStepWords) * v.dilation[d];
    if (begin + window + v.size[d] > INT32_MAX) return false;
  }
  return true;
}

const char* refuses(const BitTask& task, const Device&) {
  if (!has_near_places(task)) return "it takes images and batches of up to 2^31 positions, those around them counted";
  if (tiles_of<Few>(task) > INT32_MAX) return "it has 2^31 blocks at most";
  if (task.result.dtype == BITIMPL_SIGNS && task.groups > 1 && task.group_rows % 8 != 0) {
    return "a byte of its signs is of one group: it takes multiples of 8 channels in each";
  }
  return nullptr;
}

// Groups of few rows waste a product's eight.
bool prefers(const BitTask& task, const Device& device) {
  return planes_pay(task, device) && (task.groups == 1 || task.group_rows >= 4);
}
int needs(const BitTask&, const Device&) { return kNeedsRows | kNeedsCounts | kNeedsWords; }
int64_t scratch(const BitTask&, const Device&) { return 0; }

int run(const BitTask& task, const Device& device, Stream stream, void*) {
  const bool one = is_one_unit(task);
  switch (blocks_for(task, device)) {
    case Blocks::kLarge:
      return is_matrix(task) ? start<Large, kChunkWords, false, true>(task, stream)
                             : start<Large, kChunkWords, true, true>(task, stream);
    case Blocks::kMedium:
      if (is_matrix(task) && task.chunk_words == kChunkWords) {
        return start<Medium, kChunkWords, false, true>(task, stream);
      }
      return start_windows<Medium, true>(task, stream);
    case Blocks::kSmall:
      return one ? start_windows<Small, true>(task, stream) : start_windows<Small, false>(task, stream);
    default:
      return one ? start_windows<Few, true>(task, stream) : start_windows<Few, false>(task, stream);
  }
}

}  // namespace

const BitKernel kBitMma = {"bmma", refuses, prefers, needs, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
