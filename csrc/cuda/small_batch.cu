// A few to some hundred tokens: codes stream from memory into registers once for every 16 or 64 columns of
// activations, where they are the A operand of tensor cores.
//
// A warp owns 16 row groups (64 or 80 rows) and part of their columns. The warps of a block are side by side
// in rows, where they find each other's activations in the first cache, or share the columns of one tile;
// where that does not fill the device, blocks share them too. Sums are integers until all of a unit (a
// component of one segment) are added, so how the columns were shared does not show. With scale groups a warp
// takes whole units instead and adds their products in the order of components and segments; then warps and
// blocks are added in theirs.
#include "kernels.h"
#include "mma.cuh"
#include "small_batch_plan.cuh"

namespace bitimpl {
namespace cuda {
namespace {

using namespace small_batch;

constexpr int kThreads = kWarps * kWarp;
constexpr int kTogether = 2;  // products of eight columns that warps add up at a time

template <int FORMAT>
constexpr int32_t kMostSteps = static_cast<int32_t>(Digits<FORMAT>::kMostColumns / kStep);

// The steps of one unit that a warp takes: begin, begin + stride, ..
struct Piece {
  Unit unit;
  LaneCodes codes;
  int32_t tokens_step;  // of the unit's first step
  int32_t begin;
  int32_t end;
  int32_t stride;
};

// Piece `index` of a warp; without steps where there are no more.
template <int FORMAT>
__device__ __forceinline__ Piece piece_at(const Weight& w, const Plan& plan, int64_t tile, int32_t split,
                                          int32_t column_warp, int32_t index) {
  const int32_t column_warps = kWarps / plan.row_warps;
  const int32_t units = w.components * w.segments;
  Piece piece;
  if (plan.by_unit) {
    const int32_t end = static_cast<int32_t>(int64_t{units} * (split + 1) / plan.splits);
    const int32_t at =
        static_cast<int32_t>(int64_t{units} * split / plan.splits) + column_warp + index * column_warps;
    piece.unit = unit_at(w, least(at, units - 1));
    piece.begin = 0;
    piece.end = at < end ? piece.unit.steps : 0;
    piece.stride = 1;
  } else {
    const int32_t at = index / plan.chunks;
    piece.unit = unit_at(w, least(at, units - 1));
    const int32_t steps = at < units ? piece.unit.steps : 0;
    const int32_t length = kMostSteps<FORMAT> * column_warps;
    const int64_t begin = int64_t{steps} * split / plan.splits + int64_t{index - at * plan.chunks} * length;
    piece.begin = static_cast<int32_t>(begin) + column_warp;
    piece.end = static_cast<int32_t>(least(int64_t{steps} * (split + 1) / plan.splits, begin + length));
    piece.stride = column_warps;
  }
  piece.tokens_step = piece.unit.segment * w.segment_steps;
  piece.codes = lane_codes(w, tile, piece.unit);
  return piece;
}

// Steps whose operands a warp has on their way: as many as registers hold.
template <int FORMAT, int NT, bool BY_UNIT, bool ALIGNED>
constexpr int kDepthOf = !ALIGNED ? 1 : NT > 2 || BY_UNIT || FORMAT == BITIMPL_BASE3 ? 2 : 3;

// What a step multiplies. With many columns the activations come from the first cache as they are wanted.
template <int NT>
struct Operands {
  static constexpr bool kAhead = NT <= 4;
  uint4 codes[2];
  uint4 tokens[kAhead ? NT : 1];
};

// Where a lane's tokens lie: in steps from the first token of a plane, in 32 bits, since 64 tokens of more
// steps than that fill 256 GiB.
struct LaneTokens {
  const int8_t* plane[2];  // the lane's columns of the first token: of even products, of odd ones
  uint32_t own;
  uint32_t last;
  uint32_t steps;
  int32_t halved;  // 1 where two products are of the same tokens

  // Tokens beyond the last read the last one's, for sums that nobody stores.
  __device__ __forceinline__ uint4 load(int n, uint32_t step) const {
    const uint32_t token = least(own + static_cast<uint32_t>((n >> halved) * kTileTokens), last);
    return *reinterpret_cast<const uint4*>(plane[n % 2] + static_cast<uint64_t>(token * steps + step) * kStep);
  }
};

__device__ __forceinline__ LaneTokens lane_tokens(const Tokens& x, int64_t first, int32_t steps) {
  const int64_t first_token = eight_columns(x, first).token;
  const int64_t skipped = first_token * x.row_bytes + threadIdx.x % 4 * kLaneColumns;
  return {{x.q[0] + skipped, x.q[x.planes - 1] + skipped}, threadIdx.x % kWarp / 4,
          static_cast<uint32_t>(x.rows - 1 - first_token), static_cast<uint32_t>(steps), x.planes - 1};
}

template <int NT, bool ALIGNED>
__device__ __forceinline__ void load(const Piece& piece, const LaneTokens& tokens, int32_t step,
                                     Operands<NT>& to) {
  if (step >= piece.end) return;
  load_step<ALIGNED>(piece.codes, piece.unit, step, to.codes);
  if (Operands<NT>::kAhead) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      to.tokens[Operands<NT>::kAhead ? n : 0] = tokens.load(n, piece.tokens_step + step);
    }
  }
}

// The values that the warps of a block have of one row and column, in shared memory.
template <int FORMAT>
struct Room {
  static constexpr int kRows = Digits<FORMAT>::kRows;
  static constexpr int kPlane = 4 * kWarp + 1;  // one more, so that neighbouring rows are in different banks
  static constexpr int kEight = kRows * kPlane;
  static constexpr int kOfWarp = kTogether * kEight;
  static constexpr size_t kBytes = kWarps * kOfWarp * sizeof(uint32_t);

  // Of the first of the warps that share the columns of `row` (in the block) and `column` (of eight).
  static __device__ __forceinline__ int at(int row, int column, int eight, int column_warps) {
    constexpr int kTileRows = kTileGroups * kRows;
    const int group = row % kTileRows / kRows;
    return row / kTileRows * column_warps * kOfWarp + eight * kEight + row % kRows * kPlane +
           (group / 8 * 2 + column % 2) * kWarp + group % 8 * 4 + column / 2;
  }
};

// Sums, as they lie in shared memory and in Partial.
__device__ __forceinline__ uint32_t stored(int32_t sum) { return static_cast<uint32_t>(sum); }
__device__ __forceinline__ uint32_t stored(float sum) { return bits_of(sum); }
__device__ __forceinline__ uint32_t added(uint32_t a, uint32_t b, int32_t) { return a + b; }
__device__ __forceinline__ uint32_t added(uint32_t a, uint32_t b, float) {
  return bits_of(float_of_bits(a) + float_of_bits(b));
}

// Adds what the warps that share columns hold, in their order, and hands it over by take(row, column, n,
// both): both[i] is of the block's `row` and of column 8 * (n + i) + column. All threads come, twice a
// barrier for every two products.
template <int FORMAT, int NT, class T, class Take>
__device__ __forceinline__ void over_warps(const Plan& plan, const T (&sums)[Digits<FORMAT>::kRows][NT][4],
                                           Take take) {
  using R = Room<FORMAT>;
  uint32_t* room = shared_memory<uint32_t>();
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int column_warps = kWarps / plan.row_warps;
  const int rows = plan.row_warps * kTileGroups * R::kRows;
#pragma unroll
  for (int n = 0; n < NT; n += kTogether) {
#pragma unroll
    for (int eight = 0; eight < kTogether; ++eight) {
#pragma unroll
      for (int j = 0; j < R::kRows; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          room[warp * R::kOfWarp + eight * R::kEight + j * R::kPlane + e * kWarp + lane] =
              stored(sums[j][n + eight][e]);
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * kTileTokens; i += kThreads) {
      const int column = i / rows;
      const int row = i - column * rows;
      uint32_t both[kTogether];
#pragma unroll
      for (int eight = 0; eight < kTogether; ++eight) {
        const uint32_t* of_warp = room + R::at(row, column, eight, column_warps);
        both[eight] = of_warp[0];
        for (int other = 1; other < column_warps; ++other) {
          both[eight] = added(both[eight], of_warp[other * R::kOfWarp], T{});
        }
      }
      take(row, column, n, both);
    }
    __syncthreads();
  }
}

// y[token, row] from the sums of a row that has one scale a component, or from t.
__device__ __forceinline__ void put(const LinearTask& task, int64_t token, int64_t row, float t) {
  store(task.result, task.x.scale[token], token, row, t);
}

template <int FORMAT, int NT, bool BY_UNIT, bool ALIGNED>
__global__ void __launch_bounds__(kThreads, NT == 2 && !BY_UNIT ? 2 : 1)
    small_batch_kernel(LinearTask task, Plan plan, Partial partial) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  constexpr int kDepth = kDepthOf<FORMAT, NT, BY_UNIT, ALIGNED>;
  const Weight& w = task.weight;
  const Tokens& x = task.x;
  const int warp = threadIdx.x / kWarp;
  const int column_warps = kWarps / plan.row_warps;
  const int64_t others = blockIdx.x / plan.row_tiles;
  const int64_t row_tile = blockIdx.x - others * plan.row_tiles;
  const int32_t split = static_cast<int32_t>(others % plan.splits);
  const int64_t first = others / plan.splits * NT;  // product of eight columns
  const int64_t tile = row_tile * plan.row_warps + warp / column_warps;
  const int64_t block_row = row_tile * plan.row_warps * kTileGroups * kRows;

  const LaneTokens tokens = lane_tokens(x, first, w.steps);
  int32_t sums[kRows][NT][4];
  float t[BY_UNIT ? kRows : 1][BY_UNIT ? NT : 1][4];
  clear(t);
  Operands<NT> steps[kDepth];
  const int32_t units = w.components * w.segments;
  const int32_t pieces =
      BY_UNIT ? ceil_div(ceil_div(units, plan.splits), column_warps) : units * plan.chunks;
  Piece piece;
  const auto begin_piece = [&](int32_t index) {
    piece = piece_at<FORMAT>(w, plan, tile, split, warp % column_warps, index);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      load<NT, ALIGNED>(piece, tokens, piece.begin + d * piece.stride, steps[d]);
    }
  };
  begin_piece(0);
  for (int32_t index = 0; index < pieces; ++index) {
    clear(sums);
    for (int32_t step = piece.begin; step < piece.end; step += kDepth * piece.stride) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const int32_t at = step + d * piece.stride;
        if (at >= piece.end) break;
        const auto tokens_of = [&](int n) {
          return Operands<NT>::kAhead ? steps[d].tokens[Operands<NT>::kAhead ? n : 0]
                                      : tokens.load(n, piece.tokens_step + at);
        };
        multiply_by_halves<FORMAT, NT, 2>(steps[d].codes, tokens_of, sums);
        load<NT, ALIGNED>(piece, tokens, at + kDepth * piece.stride, steps[d]);
      }
    }
    to_digits<FORMAT, NT>(sums);
    if constexpr (BY_UNIT) {
      // The next unit's first loads are on their way while this one's sums are added.
      const Unit unit = piece.unit;
      const bool empty = piece.begin >= piece.end;
      begin_piece(index + 1);
      if (!empty) add_unit<FORMAT, NT>(task, tile, first, unit, sums, t);
      continue;
    }
    const int32_t unit_index = index / plan.chunks;
    const bool more = index % plan.chunks > 0;
    over_warps<FORMAT, NT>(plan, sums, [&](int row, int column, int n, const uint32_t (&both)[kTogether]) {
      const int64_t at_row = block_row + row;
      if (!plan.direct) {
#pragma unroll
        for (int eight = 0; eight < kTogether; ++eight) {
          const int64_t at_column = (first + n + eight) * kTileTokens + column;
          const int64_t of_unit = int64_t{split} * partial.units + unit_index;
          uint32_t* to = partial.at + (of_unit * partial.columns + at_column) * partial.rows + at_row;
          *to = more ? *to + both[eight] : both[eight];
        }
        return;
      }
      if (at_row >= w.rows) return;
#pragma unroll
      for (int eight = 0; eight < kTogether; ++eight) {
        const EightColumns columns = eight_columns(x, first + n + eight);
        const int64_t token = columns.token + column;
        if (columns.plane != 0 || token >= x.rows) continue;
        const int32_t codes[2] = {static_cast<int32_t>(both[eight]), static_cast<int32_t>(both[kTogether - 1])};
        put(task, token, at_row, 0.0f + scale_at(w, 0, at_row, 0) * dot_of(x, codes, token, 0, 1));
      }
    });
    if (index + 1 < pieces) begin_piece(index + 1);
  }
  if constexpr (BY_UNIT) {
    over_warps<FORMAT, NT>(plan, t, [&](int row, int column, int n, const uint32_t (&both)[kTogether]) {
      const int64_t at_row = block_row + row;
#pragma unroll
      for (int eight = 0; eight < kTogether; ++eight) {
        const EightColumns columns = eight_columns(x, first + n + eight);
        const int64_t token = columns.token + column;
        if (!plan.direct) {
          const int64_t at_column = (first + n + eight) * kTileTokens + column;
          partial.at[(int64_t{split} * partial.columns + at_column) * partial.rows + at_row] = both[eight];
        } else if (columns.plane == 0 && at_row < w.rows && token < x.rows) {
          put(task, token, at_row, float_of_bits(both[eight]));
        }
      }
    });
  }
}

// y from the sums of several blocks or several units.
template <bool BY_UNIT>
__global__ void __launch_bounds__(kThreads) finish_kernel(LinearTask task, Plan plan, Partial partial) {
  const Weight& w = task.weight;
  const Tokens& x = task.x;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= w.rows) return;
  for (int64_t token = blockIdx.y; token < x.rows; token += gridDim.y) {
    const int64_t column = token / kTileTokens * x.planes * kTileTokens + token % kTileTokens;
    const uint32_t* from = partial.at + column * partial.rows + row;
    const int64_t unit_size = partial.columns * partial.rows;
    float t = 0.0f;
    if (BY_UNIT) {
      for (int32_t split = 0; split < plan.splits; ++split) t = t + float_of_bits(from[split * unit_size]);
    } else {
      for (int32_t index = 0; index < partial.units; ++index) {
        uint32_t sums[2] = {0, 0};
        for (int32_t split = 0; split < plan.splits; ++split) {
          const uint32_t* at = from + (int64_t{split} * partial.units + index) * unit_size;
          sums[0] += at[0];
          if (x.planes == 2) sums[1] += at[kTileTokens * partial.rows];
        }
        const Unit unit = unit_at(w, index);
        const int32_t codes[2] = {static_cast<int32_t>(sums[0]), static_cast<int32_t>(sums[1])};
        const float dot = dot_of(x, codes, token, unit.segment, w.segments);
        t = t + scale_at(w, unit.component, row, unit.segment) * dot;
      }
    }
    put(task, token, row, t);
  }
}

const char* refuses(const LinearTask& task, const Device&) {
  return task.source.activation == BITIMPL_ACTIVATION_FLOAT ? "it takes quantised activations" : nullptr;
}

bool prefers(const LinearTask& task, const Device&) { return task.x.rows >= 5; }
bool quantises(const LinearTask&, const Device&) { return false; }

int64_t scratch(const LinearTask& task, const Device& device) {
  const Plan plan = plan_of(task, device);
  if (plan.direct) return 0;
  const Partial partial = partial_of(task, plan, nullptr);
  return plan.splits * partial.units * partial.columns * partial.rows * static_cast<int64_t>(sizeof(uint32_t));
}

template <int FORMAT, int NT, bool BY_UNIT>
int start(const LinearTask& task, const Plan& plan, const Partial& partial, Stream stream) {
  const Grid grid = {{static_cast<uint32_t>(plan.row_tiles * plan.column_tiles * plan.splits)},
                     {kThreads}, Room<FORMAT>::kBytes, stream};
  if (has_aligned_codes(task.weight)) {
    return launch(small_batch_kernel<FORMAT, NT, BY_UNIT, true>, grid, task, plan, partial);
  }
  return launch(small_batch_kernel<FORMAT, NT, BY_UNIT, false>, grid, task, plan, partial);
}

template <int FORMAT>
int start_format(const LinearTask& task, const Plan& plan, const Partial& partial, Stream stream) {
  constexpr int kMost = most_products(FORMAT, false);
  constexpr int kMostByUnit = most_products(FORMAT, true);
  if (plan.by_unit && plan.products == 2) return start<FORMAT, 2, true>(task, plan, partial, stream);
  if (plan.by_unit) return start<FORMAT, kMostByUnit, true>(task, plan, partial, stream);
  if (plan.products == 2) return start<FORMAT, 2, false>(task, plan, partial, stream);
  if (plan.products == 4) return start<FORMAT, 4, false>(task, plan, partial, stream);
  return start<FORMAT, kMost, false>(task, plan, partial, stream);
}

int run(const LinearTask& task, const Device& device, Stream stream, void* memory) {
  const Plan plan = plan_of(task, device);
  const Partial partial = partial_of(task, plan, memory);
  const int status = task.weight.format == BITIMPL_BASE3
                         ? start_format<BITIMPL_BASE3>(task, plan, partial, stream)
                         : start_format<BITIMPL_TWO_BIT>(task, plan, partial, stream);
  if (status != BITIMPL_OK || plan.direct) return status;
  const Grid grid = {{static_cast<uint32_t>(ceil_div<int64_t>(task.weight.rows, kThreads)),
                      static_cast<uint32_t>(least<int64_t>(task.x.rows, 65535))}, {kThreads}, 0, stream};
  return plan.by_unit ? launch(finish_kernel<true>, grid, task, plan, partial)
                      : launch(finish_kernel<false>, grid, task, plan, partial);
}

}  // namespace

const LinearKernel kSmallBatch = {"small_batch", refuses, prefers, quantises, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
