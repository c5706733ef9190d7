// What a block of binary_gemm_sm90a.cu reads: words of both operands through stages of shared memory, which
// one thread fills by copies of boxes, and what belongs to the columns of a tile (rows of the weight), which
// three warps put beside them. The warpgroups that multiply empty both.
#ifndef BITIMPL_CUDA_BGMMA_LOADS_CUH
#define BITIMPL_CUDA_BGMMA_LOADS_CUH

#include "bgmma_layout.h"
#include "bits.cuh"
#include "tensor_map.cuh"

namespace bitimpl {
namespace cuda {
namespace bgmma {

// The dot products of a row of the weight whose y, of a token's scale of 1, has the sign +1: from `first` on,
// `count` of them. Since y rises or falls with the dot product there is no other. -1: not known, y is to be
// formed.
struct Interval {
  int32_t first;
  int32_t count;
};

struct Job {
  TensorMap x;
  TensorMap w;
  BitTask task;
  Interval* intervals;  // [rows]; null: none
  int64_t tokens;  // samples times positions
  int64_t weight_tiles;
  int64_t token_tiles;
};

__device__ __forceinline__ int32_t lines_of(const BitUnit& unit) { return ceil_div(unit.words, kLineWords); }

// What two neighbouring columns need at the end, 16 bytes at a time so that the four lanes of a row read 64
// bytes.
enum Field { kTermsAndScales, kBiasesAndLower, kUpperAndLeast, kMost, kTermsAndCounts, kFields };

// The block's shared memory: stages of one line of every row, constants of a tile's columns, barriers.
template <int COLUMNS>
struct Stages {
  static constexpr int kCount = stages_of(COLUMNS);
  static constexpr uint32_t kBytes = stage_bytes(COLUMNS);
  static constexpr int kPairs = COLUMNS / 2;
  static constexpr size_t kConstantBytes = kFields * kPairs * sizeof(uint4);
  static constexpr size_t kBufferBytes = kConstantBytes + 2 * sizeof(uint64_t) + kPutters * sizeof(uint32_t);
  static constexpr size_t kAll =
      kEightLines + kCount * (kBytes + 2 * sizeof(uint64_t)) + kConstantBuffers * kBufferBytes;

  __device__ Stages() {
    char* start = shared_memory<char>();
    const uint32_t skipped = (kEightLines - shared_address(start) % kEightLines) % kEightLines;
    data = start + skipped;
    constants = reinterpret_cast<uint4*>(data + kCount * kBytes);
    full = reinterpret_cast<uint64_t*>(constants + kConstantBuffers * kFields * kPairs);
    empty = full + kCount;
    known = empty + kCount;
    used = known + kConstantBuffers;
    quick = reinterpret_cast<uint32_t*>(used + kConstantBuffers);
  }

  __device__ __forceinline__ uint4* field(uint32_t buffer, int field) const {
    return constants + (buffer * kFields + static_cast<uint32_t>(field)) * kPairs;
  }

  char* data;
  uint4* constants;
  uint64_t* full;   // the copies have landed
  uint64_t* empty;  // every warp's products are done with it
  uint64_t* known;  // the constants of a unit are there
  uint64_t* used;   // every warp is done with them
  uint32_t* quick;  // [buffers, kPutters]: whether the intervals of all columns that a warp has put are known
};

template <int COLUMNS>
__device__ void copy_operands(const Job& job, const Stages<COLUMNS>& stages) {
  const BitTask& task = job.task;
  const bool first_lane = threadIdx.x % kWarp == 0;
  if (first_lane) {
    prefetch_map(job.x);
    prefetch_map(job.w);
  }
  Turn<Stages<COLUMNS>::kCount> turn;
  for (int64_t index = blockIdx.x; index < job.weight_tiles * job.token_tiles; index += gridDim.x) {
    const wgmma::Tile tile = wgmma::tile_at(index, job.weight_tiles, job.token_tiles);
    const int32_t token = static_cast<int32_t>(tile.tokens * kTileTokens);
    for (int32_t i = 0; i < units_of(task); ++i) {
      const BitUnit unit = bit_unit_at(task, i);
      const int32_t row = static_cast<int32_t>(unit.component * task.weight.rows + tile.weight * COLUMNS);
      for (int32_t line = 0; line < lines_of(unit); ++line) {
        wait_for_phase(stages.empty + turn.index, turn.parity ^ 1);
        if (first_lane) {
          char* to = stages.data + turn.index * Stages<COLUMNS>::kBytes;
          const int32_t word = unit.first_word + line * kLineWords;
          arrive_and_expect(stages.full + turn.index, Stages<COLUMNS>::kBytes);
          copy_box(to, job.x, word, token, stages.full + turn.index);
          copy_box(to + token_bytes(), job.w, word, row, stages.full + turn.index);
        }
        __syncwarp();
        turn.next();
      }
    }
  }
}

// Two values of neighbouring rows of the weight from `row` on; where there are fewer, `missing`.
template <class Value>
__device__ __forceinline__ uint2 pair_of(const BitTask& task, int64_t row, float missing, Value value) {
  uint2 bits = {bits_of(missing), bits_of(missing)};
  if (row < task.weight.rows) bits.x = bits_of(value(row));
  if (row + 1 < task.weight.rows) bits.y = bits_of(value(row + 1));
  return bits;
}

// The part of dot_of_set() that a row of the weight brings. Where there is no row every dot product is above
// 0, every y (of a scale of 1) finite or infinite as its token's scale is, and no sign is set: nothing to ask
// for in the end.
__device__ __forceinline__ int32_t term_of_row(const BitTask& task, const BitUnit& unit, int64_t row) {
  constexpr int32_t kMissing = 1 << 30;
  return row < task.weight.rows ? dot_of_set(task, unit, 0, 0, set_of_row(task, unit, row)) : kMissing;
}

__device__ __forceinline__ uint4 joined(uint2 a, uint2 b) { return {a.x, a.y, b.x, b.y}; }

// What signs are told apart by, of two neighbouring rows of the weight; whether that is known.
__device__ __forceinline__ bool pair_of_intervals(const Job& job, int64_t row, const uint2& terms,
                                                  uint4* out) {
  Interval of[2] = {};
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    if (row + odd < job.task.weight.rows) of[odd] = job.intervals[row + odd];
  }
  *out = {terms.x - static_cast<uint32_t>(of[0].first), terms.y - static_cast<uint32_t>(of[1].first),
          static_cast<uint32_t>(of[0].count), static_cast<uint32_t>(of[1].count)};
  return of[0].count >= 0 && of[1].count >= 0;
}

// What the signs of two neighbouring rows of the weight need beside their scales and biases.
template <int COLUMNS>
__device__ __forceinline__ void put_bounds(const Job& job, const Stages<COLUMNS>& stages, uint32_t buffer,
                                           int pair, int64_t row, const uint2& biases) {
  const bitimpl_signs& s = job.task.result.signs;
  const auto at = [&](const float* values, float missing) {
    return pair_of(job.task, row, missing, [=](int64_t n) { return values[n]; });
  };
  stages.field(buffer, kBiasesAndLower)[pair] = joined(biases, at(s.lower, INFINITY));
  stages.field(buffer, kUpperAndLeast)[pair] = joined(at(s.upper, -INFINITY), at(s.least, -INFINITY));
  stages.field(buffer, kMost)[pair] = joined(at(s.most, INFINITY), {});
}

// By kPutters warps, which take the pairs of columns in turn. A missing bias is -0, which changes no sum.
template <int COLUMNS>
__device__ void put_constants(const Job& job, const Stages<COLUMNS>& stages, int warp) {
  const BitTask& task = job.task;
  const BitResult& r = task.result;
  const int32_t units = units_of(task);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Turn<kConstantBuffers> turn;
  for (int64_t index = blockIdx.x; index < job.weight_tiles * job.token_tiles; index += gridDim.x) {
    const int64_t first = wgmma::tile_at(index, job.weight_tiles, job.token_tiles).weight * COLUMNS;
    for (int32_t i = 0; i < units; ++i) {
      const BitUnit unit = bit_unit_at(task, i);
      bool quick = job.intervals != nullptr;
      wait_for_phase(stages.used + turn.index, turn.parity ^ 1);
      for (int pair = warp * kWarp + lane; pair < Stages<COLUMNS>::kPairs; pair += kPutters * kWarp) {
        const int64_t row = first + 2 * pair;
        const uint2 terms = {static_cast<uint32_t>(term_of_row(task, unit, row)),
                             static_cast<uint32_t>(term_of_row(task, unit, row + 1))};
        const auto scale = [&](int64_t n) { return scale_at(task.weight, unit.component, n, unit.segment); };
        stages.field(turn.index, kTermsAndScales)[pair] = joined(terms, pair_of(task, row, 1.0f, scale));
        if (i + 1 < units) continue;
        const auto bias = [&](int64_t n) {
          return r.bias == nullptr ? -0.0f : load_float(r.bias, r.bias_dtype, n);
        };
        const uint2 biases = pair_of(task, row, -0.0f, bias);
        if (r.dtype != BITIMPL_SIGNS) {
          stages.field(turn.index, kBiasesAndLower)[pair] = joined(biases, {});
          continue;
        }
        put_bounds(job, stages, turn.index, pair, row, biases);
        if (job.intervals == nullptr) continue;
        uint4* to = stages.field(turn.index, kTermsAndCounts) + pair;
        if (!pair_of_intervals(job, row, terms, to)) quick = false;
      }
      const bool all_quick = ballot(!quick) == 0;
      __syncwarp();  // what all lanes have stored comes before the first one's arrival, which a ballot does not say
      if (lane == 0) {
        stages.quick[turn.index * kPutters + static_cast<uint32_t>(warp)] = all_quick;
        arrive(stages.known + turn.index);
      }
      turn.next();
    }
  }
}

}  // namespace bgmma
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BGMMA_LOADS_CUH
