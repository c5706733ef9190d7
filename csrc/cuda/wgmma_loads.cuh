// What a block of gemm_sm90a.cu reads: activations through stages of shared memory, which a warp fills by bulk
// copies and the products empty, and codes from memory into the registers of the warp that multiplies them.
#ifndef BITIMPL_CUDA_WGMMA_LOADS_CUH
#define BITIMPL_CUDA_WGMMA_LOADS_CUH

#include "hopper.cuh"
#include "layout.cuh"
#include "wgmma_layout.h"

namespace bitimpl {
namespace cuda {
namespace wgmma {

constexpr int kStageAlignment = 512;  // of the swizzle's pattern

struct Job {
  LinearTask task;
  int64_t weight_tiles;
  int64_t token_tiles;
};

// The block's shared memory: stages of one step each, and two barriers of each stage.
template <int COLUMNS>
struct Stages {
  static constexpr uint32_t kBytes = COLUMNS * kStep;
  static constexpr size_t kAll = kStageAlignment + kStages * (kBytes + 2 * sizeof(uint64_t));

  __device__ Stages() {
    char* start = shared_memory<char>();
    const uint32_t skipped = (kStageAlignment - shared_address(start) % kStageAlignment) % kStageAlignment;
    data = start + skipped;
    full = reinterpret_cast<uint64_t*>(data + kStages * kBytes);
    empty = full + kStages;
  }

  char* data;
  uint64_t* full;   // the copy has landed
  uint64_t* empty;  // every warp's products are done with it
};

template <int COLUMNS, int PLANES>
__device__ void copy_activations(const Job& job, const Stages<COLUMNS>& stages) {
  constexpr int kTokens = tile_tokens(COLUMNS, PLANES);
  constexpr uint32_t kPlaneBytes = kTokens * kStep;
  const Weight& w = job.task.weight;
  const Tokens& x = job.task.x;
  uint32_t copy = 0;
  for (int64_t index = blockIdx.x; index < job.weight_tiles * job.token_tiles; index += gridDim.x) {
    const int64_t first = tile_at(index, job.weight_tiles, job.token_tiles).tokens * w.steps;
    for (int32_t component = 0; component < w.components; ++component) {
      for (int32_t step = 0; step < w.steps; ++step, ++copy) {
        const uint32_t stage = stage_of(copy);
        wait_for_phase(stages.empty + stage, parity_of(copy) ^ 1);
        if (threadIdx.x % kWarp == 0) {
          arrive_and_expect(stages.full + stage, Stages<COLUMNS>::kBytes);
#pragma unroll
          for (int plane = 0; plane < PLANES; ++plane) {
            copy_bulk(stages.data + stage * Stages<COLUMNS>::kBytes + plane * kPlaneBytes,
                      x.q[plane] + (first + step) * kPlaneBytes, kPlaneBytes, stages.full + stage);
          }
        }
        __syncwarp();
      }
    }
  }
}

// 16 columns of a lane's two row groups in one step.
struct Codes {
  uint4 of[2];
};

// The codes of this warp in the order in which it needs them: tiles, components, segments, steps. Beyond the
// last row group it reads the last one again, whose sums nobody stores, and so it does beyond the last tile.
template <bool WHOLE>
class CodeWalk;

// Where has_whole_steps() and rows have one segment of one component: from the first step to the last every
// step is as many bytes further, and aligned.
template <>
class CodeWalk<true> {
 public:
  __device__ __forceinline__ CodeWalk(const Job& job, int64_t first_group)
      : job_(job), first_group_(first_group), tile_(blockIdx.x) {
    begin_tile();
  }

  __device__ __forceinline__ Codes fetch() {
    Codes codes;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      codes.of[upper] = load_once(from_[upper]);
      from_[upper] += step_bytes_[upper];
    }
    if (--left_ == 0) {
      tile_ += gridDim.x;
      begin_tile();
    }
    return codes;
  }

 private:
  __device__ __forceinline__ void begin_tile() {
    const Weight& w = job_.task.weight;
    const bool ended = tile_ >= job_.weight_tiles * job_.token_tiles;
    const int64_t tile = ended ? 0 : tile_at(tile_, job_.weight_tiles, job_.token_tiles).weight;
    left_ = w.steps;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t group = least(tile * kTileGroups + first_group_ + 8 * upper, w.groups - 1);
      const int64_t block = group / kBlockGroups * kBlockGroups;
      step_bytes_[upper] = static_cast<int32_t>(least<int64_t>(kBlockGroups, w.groups - block)) * kStep;
      from_[upper] = w.codes + block * w.cols + (group - block) * kStep + threadIdx.x % 4 * 16;
    }
  }

  const Job& job_;
  const int64_t first_group_;  // in a tile
  int64_t tile_;
  int32_t left_;  // steps of the tile
  const uint8_t* from_[2];
  int32_t step_bytes_[2];
};

// Any shape and alignment.
template <>
class CodeWalk<false> {
 public:
  __device__ __forceinline__ CodeWalk(const Job& job, int64_t first_group)
      : job_(job), first_group_(first_group), tile_(blockIdx.x) {
    begin_tile();
  }

  __device__ __forceinline__ Codes fetch() {
    const Weight& w = job_.task.weight;
    const int32_t columns = least<int32_t>(kStep, segment_end_ - column_);
    const int lane_column = threadIdx.x % 4 * 16;
    Codes codes;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const uint8_t* from = row_block_[upper] + static_cast<int64_t>(column_) * groups_[upper] +
                            inside_[upper] * columns + lane_column;
      codes.of[upper] = load_codes(from, most(columns - lane_column, 0));
    }
    column_ += columns;
    if (column_ < segment_end_) return codes;
    if (column_ < w.cols) {
      segment_end_ = static_cast<int32_t>(least<int64_t>(column_ + w.segment, w.cols));
      return codes;
    }
    begin_row();
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) row_block_[upper] += groups_[upper] * w.cols;
    if (++component_ == w.components) {
      tile_ += gridDim.x;
      begin_tile();
    }
    return codes;
  }

 private:
  __device__ __forceinline__ void begin_row() {
    column_ = 0;
    segment_end_ = static_cast<int32_t>(job_.task.weight.segment);
  }

  __device__ __forceinline__ void begin_tile() {
    const Weight& w = job_.task.weight;
    component_ = 0;
    begin_row();
    const bool ended = tile_ >= job_.weight_tiles * job_.token_tiles;
    const int64_t tile = ended ? 0 : tile_at(tile_, job_.weight_tiles, job_.token_tiles).weight;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t group = least(tile * kTileGroups + first_group_ + 8 * upper, w.groups - 1);
      const int64_t block = group / kBlockGroups * kBlockGroups;
      inside_[upper] = static_cast<int32_t>(group - block);
      groups_[upper] = static_cast<int32_t>(least<int64_t>(kBlockGroups, w.groups - block));
      row_block_[upper] = w.codes + block * w.components * w.cols;
    }
  }

  const Job& job_;
  const int64_t first_group_;  // in a tile
  int64_t tile_;
  int32_t component_;
  int32_t column_;
  int32_t segment_end_;
  const uint8_t* row_block_[2];  // of the component
  int32_t groups_[2];            // of the row block
  int32_t inside_[2];            // which of them
};

}  // namespace wgmma
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_WGMMA_LOADS_CUH
