// Many tokens, on any architecture: a block makes 256 (320) rows of 64 or 128 columns of activations. Codes
// go from memory to registers, a step ahead, and are decoded there; activations come through shared memory,
// some steps ahead, since four warps want the same ones.
#include "kernels.h"
#include "mma.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kRowWarps = 4;
constexpr int kColumnWarps = 2;
constexpr int kThreads = kRowWarps * kColumnWarps * kWarp;
constexpr int kStages = 4;
constexpr int kWide = 8;    // products of eight columns in a warp: where one unit makes the whole sum
constexpr int kNarrow = 4;  // beside as many sums of floats

// Copies the block's activations of a step, 64 bytes a column.
template <int NT>
struct Copies {
  static constexpr int kColumns = kColumnWarps * NT * kTileTokens;
  static constexpr int kOfThread = kColumns * kStep / 16 / kThreads;
  static constexpr int kStage = kColumns * kStep;

  const int8_t* from[kOfThread];
  int32_t valid[kOfThread];

  __device__ __forceinline__ Copies(const Tokens& x, int64_t first) {
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const int column = (i * kThreads + threadIdx.x) / 4;
      const EightColumns eight = eight_columns(x, first + column / kTileTokens);
      const int64_t token = eight.token + column % kTileTokens;
      valid[i] = token < x.rows ? 16 : 0;
      from[i] = x.q[eight.plane] + least(token, x.rows - 1) * x.row_bytes + threadIdx.x % 4 * kLaneColumns;
    }
  }

  __device__ __forceinline__ void begin(int8_t* stage, int32_t step) const {
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      copy_async(stage + (i * kThreads + threadIdx.x) * 16, from[i] + static_cast<int64_t>(step) * kStep, valid[i]);
    }
  }
};

// Steps of all units, one after another.
template <bool ONE_UNIT, bool ALIGNED>
struct Walk {
  int32_t index;
  int32_t step;
  Unit unit;
  LaneCodes codes;

  __device__ __forceinline__ void load(const Weight& w, int32_t tile, uint4 (&to)[2]) {
    if (!ONE_UNIT && step == unit.steps) {
      step = 0;
      ++index;
      if (index == w.components * w.segments) return;
      unit = unit_at(w, index);
      codes = lane_codes(w, tile, unit);
    }
    load_step<ALIGNED>(codes, unit, step, to);
    ++step;
  }
};

// y of the rows of one row group, together where y lies so.
template <int FORMAT>
__device__ __forceinline__ void store_group(const LinearTask& task, bool together, int64_t token, int64_t group,
                                            const float (&t)[Digits<FORMAT>::kRows]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const int64_t row = group * kRows;
  const float scale = task.x.scale[token];
  if (together && row + kRows <= task.weight.rows) {
    store_four(task.result, scale, token, row, {t[0], t[1], t[2], t[3]});
    return;
  }
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    if (row + j < task.weight.rows) store(task.result, scale, token, row + j, t[j]);
  }
}

// y of a warp's rows and columns: from t, or (ONE_UNIT) from the sums of digits of the only unit.
template <int FORMAT, int NT, bool ONE_UNIT, class T>
__device__ __forceinline__ void store_tile(const LinearTask& task, int32_t tile, int32_t first,
                                           const T (&sums)[Digits<FORMAT>::kRows][NT][4]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const Tokens& x = task.x;
  const int lane = threadIdx.x % kWarp;
  const bool together = kRows == 4 && stores_four(task.result);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t group = int64_t{tile} * kTileGroups + lane / 4 + 8 * half;
    if (group >= task.weight.groups) break;
    float scales[kRows];
#pragma unroll
    for (int j = 0; ONE_UNIT && j < kRows; ++j) {
      scales[j] = scale_at(task.weight, 0, least(group * kRows + j, task.weight.rows - 1), 0);
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const EightColumns eight = eight_columns(x, first + n);
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        const int64_t token = eight.token + lane % 4 * 2 + e % 2;
        if (eight.plane != 0 || token >= x.rows) continue;
        float t[kRows];
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          if constexpr (ONE_UNIT) {
            const int32_t codes[2] = {sums[j][n][e], sums[j][(n + 1) % NT][e]};
            t[j] = 0.0f + scales[j] * dot_of(x, codes, token, 0, 1);
          } else {
            t[j] = sums[j][n][e];
          }
        }
        store_group<FORMAT>(task, together, token, group, t);
      }
    }
  }
}

template <int FORMAT, int NT, bool ALIGNED>
__global__ void __launch_bounds__(kThreads, 1) gemm_kernel(LinearTask task, int32_t row_tiles) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  constexpr bool kOneUnit = NT == kWide;
  const Weight& w = task.weight;
  int8_t* stages = shared_memory<int8_t>();
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int32_t column_tile = static_cast<int32_t>(blockIdx.x) / row_tiles;
  const int32_t row_tile = static_cast<int32_t>(blockIdx.x) - column_tile * row_tiles;
  const int32_t tile = row_tile * kRowWarps + warp % kRowWarps;
  const int32_t first_of_block = column_tile * kColumnWarps * NT;
  const int32_t first = first_of_block + warp / kRowWarps * NT;
  // Column lane / 4 of eight (64 bytes each), its 16 bytes at 16 * (lane % 4).
  const int own = warp / kRowWarps * NT * kTileTokens * kStep + lane * kLaneColumns;

  const Copies<NT> copies(task.x, first_of_block);
  const int32_t total = w.components * w.steps;
  int32_t step_begun = 0;
  // A group of copies each time, empty at the end, so that counting groups counts steps.
  const auto begin_step = [&](int32_t index) {
    if (index < total) copies.begin(stages + index % kStages * Copies<NT>::kStage, step_begun);
    commit_copies();
    if (++step_begun == w.steps) step_begun = 0;
  };
  for (int i = 0; i < kStages - 1; ++i) begin_step(i);

  int32_t sums[kRows][NT][4];
  float t[kOneUnit ? 1 : kRows][kOneUnit ? 1 : NT][4];
  clear(sums);
  clear(t);
  Walk<kOneUnit, ALIGNED> walk = {0, 0, unit_at(w, 0), {}};
  walk.codes = lane_codes(w, tile, walk.unit);
  uint4 next[2] = {};
  walk.load(w, tile, next);
  int32_t at = 0;
  const int32_t units = kOneUnit ? 1 : w.components * w.segments;
  for (int32_t index = 0; index < units; ++index) {
    const int32_t end = at + unit_at(w, index).steps;
    for (; at < end; ++at) {
      const uint4 codes[2] = {next[0], next[1]};
      if (ALIGNED && at + 1 < total) walk.load(w, tile, next);
      wait_for_copies<kStages - 2>();
      __syncthreads();
      begin_step(at + kStages - 1);  // where the step before this one was, which all warps have left
      const int8_t* stage = stages + at % kStages * Copies<NT>::kStage + own;
      const auto tokens_of = [&](int n) { return *reinterpret_cast<const uint4*>(stage + n * kTileTokens * kStep); };
      if constexpr (FORMAT == BITIMPL_TWO_BIT) {
        multiply_whole<FORMAT, NT>(codes, tokens_of, sums);
      } else {
        multiply_by_halves<FORMAT, NT, 1>(codes, tokens_of, sums);  // registers hold the sums of five rows
      }
      if (!ALIGNED && at + 1 < total) walk.load(w, tile, next);  // byte by byte, which takes registers of its own
    }
    to_digits<FORMAT, NT>(sums);
    if constexpr (!kOneUnit) {
      add_unit<FORMAT, NT>(task, tile, first, unit_at(w, index), sums, t);
      clear(sums);
    }
  }
  if constexpr (kOneUnit) {
    store_tile<FORMAT, NT, true>(task, tile, first, sums);
  } else {
    store_tile<FORMAT, NT, false>(task, tile, first, t);
  }
}

struct Tiles {
  int64_t rows;
  int64_t columns;
};

Tiles tiles_of(const LinearTask& task, int products) {
  return {ceil_div<int64_t>(task.weight.groups, kRowWarps * kTileGroups),
          ceil_div<int64_t>(product_columns(task.x), kColumnWarps * products * kTileTokens)};
}

int64_t blocks_of(const LinearTask& task, int products) {
  const Tiles tiles = tiles_of(task, products);
  return tiles.rows * tiles.columns;
}

// Blocks of 128 columns where they waste less of the last wave than those of 64, which decode twice as often.
bool is_wide(const LinearTask& task, const Device& device) {
  if (task.weight.components * task.weight.segments > 1) return false;
  const double wide = static_cast<double>(ceil_div<int64_t>(blocks_of(task, kWide), device.multiprocessors));
  const double narrow = static_cast<double>(ceil_div<int64_t>(blocks_of(task, kNarrow), device.multiprocessors));
  return 2.0 * wide <= 1.1 * narrow;
}

const char* refuses(const LinearTask& task, const Device&) {
  if (task.source.activation == BITIMPL_ACTIVATION_FLOAT) return "it takes quantised activations";
  if (task.weight.segment > most_columns(task.weight.format)) {
    return "it adds at most 131072 columns of two_bit weights for one scale";
  }
  if (int64_t{task.weight.components} * task.weight.steps > INT32_MAX) return "its steps are counted in 32 bits";
  return nullptr;
}

// Fewer blocks than multiprocessors leave the others idle: small_batch shares columns out, too.
bool prefers(const LinearTask& task, const Device& device) {
  return task.x.rows > 64 && 4 * blocks_of(task, kNarrow) >= 3 * device.multiprocessors;
}

bool quantises(const LinearTask&, const Device&) { return false; }
int64_t scratch(const LinearTask&, const Device&) { return 0; }

template <int FORMAT, int NT>
int start(const LinearTask& task, Stream stream) {
  const Tiles tiles = tiles_of(task, NT);
  const Grid grid = {{static_cast<uint32_t>(tiles.rows * tiles.columns)}, {kThreads},
                     kStages * Copies<NT>::kStage, stream};
  const int32_t row_tiles = static_cast<int32_t>(tiles.rows);
  if (has_aligned_codes(task.weight)) return launch(gemm_kernel<FORMAT, NT, true>, grid, task, row_tiles);
  return launch(gemm_kernel<FORMAT, NT, false>, grid, task, row_tiles);
}

int run(const LinearTask& task, const Device& device, Stream stream, void*) {
  const bool wide = is_wide(task, device);
  if (task.weight.format == BITIMPL_BASE3) {
    return wide ? start<BITIMPL_BASE3, kWide>(task, stream) : start<BITIMPL_BASE3, kNarrow>(task, stream);
  }
  return wide ? start<BITIMPL_TWO_BIT, kWide>(task, stream) : start<BITIMPL_TWO_BIT, kNarrow>(task, stream);
}

}  // namespace

const LinearKernel kGemm = {"gemm", refuses, prefers, quantises, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
