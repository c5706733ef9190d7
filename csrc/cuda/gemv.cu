// Few tokens: every byte of the weight is read once, and 16 weights cost four masks and four dp4a a token.
//
// A block keeps its tokens, as integers, in shared memory and takes a share of the row groups that lies in one
// piece in memory. That piece is cut into as many even slices as the block has warps, wherever the cuts fall; a
// warp walks along its slice with several loads of 512 bytes in flight. Wherever a slice leaves a row group, a
// component or a scale group, it adds what it has to that place's integers in shared memory: exact, so in
// whatever order. What remains after the one barrier is a few products for each row.
//
// Nothing is split over blocks: what fits in shared memory is at most some 200 thousand columns, which one
// multiprocessor streams in the time that clearing counters for it would take.
#include "gemv_walk.cuh"
#include "kernels.h"
#include "quantize.cuh"

namespace bitimpl {
namespace cuda {
namespace {

using namespace gemv;

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMostColumns = 8;          // tokens times planes of one launch
constexpr int kOverrun = 1024;           // bytes past the tokens that meet codes of 0 only
constexpr int kLanesOfManySegments = 8;  // that share the scales of one result
// Values that every block quantises again rather than one launch does it for all of them.
constexpr int64_t kMostQuantised = 32768;
constexpr int64_t kMostTokens = 4;  // times planes; from there on dp4a costs more than reading the weight

// Shared memory, in order: q of every column, integers of a round, room to reduce, scales of tokens, sums of q.
__host__ __device__ __forceinline__ int64_t bytes_of_tokens(const Weight& w, int32_t columns) {
  return int64_t{columns} * kStep * w.steps + kOverrun;
}

__host__ __device__ __forceinline__ int64_t bytes_besides(const Weight& w, int32_t columns) {
  return round_up<int64_t>(4 * int64_t{columns} * (w.segments + 1 + kWarps), 16);
}

// ---- a block ----------------------------------------------------------------------------------------------

// The launch's tokens into shared memory. `largest`: room for one value of every token and warp.
__device__ __forceinline__ void take_tokens(const LinearTask& task, const Plan& plan, int8_t* q, int32_t* sums,
                                            float* scales, uint32_t* largest) {
  const Weight& w = task.weight;
  const int32_t planes = task.x.planes;
  const int64_t row_bytes = int64_t{kStep} * w.steps;
  if (!plan.quantises) {
    const int32_t pieces = w.steps * kLanesAStep;
    for (int32_t column = 0; column < plan.columns; ++column) {
      const int64_t token = plan.token + column / planes;
      const int8_t* from = task.x.q[column % planes] + token * task.x.row_bytes;
      for (int32_t i = threadIdx.x; i < pieces; i += kThreads) {
        copy_async(q + column * row_bytes + 16 * i, from + 16 * i);
      }
      const int32_t* sums_from = task.x.sums[column % planes] + token * w.segments;
      for (int32_t i = threadIdx.x; i < w.segments; i += kThreads) sums[column * w.segments + i] = sums_from[i];
      if (threadIdx.x == 0 && column % planes == 0) scales[column / planes] = task.x.scale[token];
    }
    commit_copies();
    wait_for_copies<0>();
    return;
  }
  // The largest of every token first, so that the tokens wait for memory together.
  for (int32_t i = threadIdx.x; i < plan.columns * w.segments; i += kThreads) sums[i] = 0;
  const bool wide = wide_loads(task.source);
  for (int32_t token = 0; token < plan.tokens; ++token) {
    uint32_t share = largest_of_share<kThreads>(task.source, w.cols, plan.token + token, wide);
    for (int mask = 1; mask < kWarp; mask *= 2) share = most(share, shuffle_xor(share, mask));
    if (threadIdx.x % kWarp == 0) largest[token * kWarps + threadIdx.x / kWarp] = share;
  }
  __syncthreads();
  for (int32_t token = 0; token < plan.tokens; ++token) {
    uint32_t of_token = 0;
    for (int warp = 0; warp < kWarps; ++warp) of_token = most(of_token, largest[token * kWarps + warp]);
    const Rule rule = rule_of_largest(of_token, task.source.activation);
    if (threadIdx.x == 0) scales[token] = rule.scale;
    int8_t* const rows[2] = {q + token * planes * row_bytes, q + (token * planes + 1) * row_bytes};
    int32_t* const of_rows[2] = {sums + token * planes * w.segments, sums + (token * planes + 1) * w.segments};
    quantise_token<kThreads>(w, task.source, plan.token + token, rule, planes, wide, rows, of_rows,
                             StepsInOrder{w.steps});
  }
}

// y of the round's rows from its integers. One lane a result, in the order of impl.h; where there are many
// scales, several lanes, whose sums are added at the end.
template <int FORMAT>
__device__ __forceinline__ void finish(const LinearTask& task, const Plan& plan, const int32_t* totals,
                                       const int32_t* sums, const float* scales, int64_t first_row, int32_t rows) {
  const Weight& w = task.weight;
  const int32_t unit_rows = plan.span * Digits<FORMAT>::kRows;
  const int32_t planes = task.x.planes;
  const int32_t products = w.components * w.segments;
  const int32_t lanes = products > kLanesOfManySegments ? kLanesOfManySegments : 1;
  const int32_t results = rows * plan.tokens;
  const int32_t lane = threadIdx.x % lanes;
  for (int32_t base = threadIdx.x / kWarp * kWarp; base < results * lanes; base += kThreads) {
    const int32_t result = (base + threadIdx.x % kWarp) / lanes;
    const int32_t token = result / rows;
    const int32_t in_round = result - token * rows;
    const int64_t row = first_row + in_round;
    const bool mine = result < results && row < w.rows;
    float t = 0.0f;
    if (mine) {
      const int32_t* of_row = totals + in_round / unit_rows * plan.unit_sums + in_round % unit_rows;
      for (int32_t i = lane; i < products; i += lanes) {
        const int32_t component = i / w.segments;
        const int32_t segment = i - component * w.segments;
        int32_t dots[2] = {};
#pragma unroll
        for (int plane = 0; plane < 2; ++plane) {
          if (plane == planes) break;
          const int32_t column = token * planes + plane;
          dots[plane] = of_row[(i * plan.columns + column) * unit_rows] - sums[column * w.segments + segment];
        }
        const float dot = planes == 1 ? static_cast<float>(dots[0])
                                      : static_cast<float>(int64_t{256} * dots[0] + dots[1]);
        t = t + scale_at(w, component, row, segment) * dot;
      }
    }
    for (int32_t mask = 1; mask < lanes; mask *= 2) t = t + shuffle_xor(t, mask);
    if (mine && lane == 0) store(task.result, scales[token], plan.token + token, row, t);
  }
}

template <int FORMAT, int COLUMNS, bool WHOLE>
__global__ void __launch_bounds__(kThreads, 1) gemv_kernel(LinearTask task, Plan plan) {
  constexpr int kAhead = COLUMNS <= 2 ? 3 : COLUMNS <= 4 ? 2 : 1;  // what registers hold
  const Weight& w = task.weight;
  int8_t* q = shared_memory<int8_t>();
  int32_t* totals = reinterpret_cast<int32_t*>(q + bytes_of_tokens(w, plan.columns));
  uint32_t* room = reinterpret_cast<uint32_t*>(totals + int64_t{plan.round} * plan.unit_sums);
  float* scales = reinterpret_cast<float*>(room + plan.columns * kWarps);
  int32_t* sums = reinterpret_cast<int32_t*>(scales + plan.columns);

  const int64_t share_end = plan.units * (blockIdx.x + 1) / gridDim.x;
  const int32_t unit_loads = w.components * ceil_div(w.steps, kPieces * steps_of_piece(plan.span));
  const int32_t warp = threadIdx.x / kWarp;
  const int64_t share = plan.units * blockIdx.x / gridDim.x;
  for (int64_t unit = share; unit < share_end; unit += plan.round) {
    const int32_t units = static_cast<int32_t>(least<int64_t>(plan.round, share_end - unit));
    const int32_t begin = static_cast<int32_t>(int64_t{units} * unit_loads * warp / kWarps);
    const int32_t end = static_cast<int32_t>(int64_t{units} * unit_loads * (warp + 1) / kWarps);
    // The weight is on its way before the tokens are there.
    Reader<WHOLE> reader(w, plan, unit, begin, end);
    Load ring[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) ring[u] = reader.next(w, plan);
    const int32_t rows = units * plan.span * Digits<FORMAT>::kRows;
    const int64_t first_row = unit * plan.span * Digits<FORMAT>::kRows;
    prefetch_scales<kThreads>(w, task.result.bias, task.result.bias_dtype, first_row, rows);
    if (unit != share) __syncthreads();  // the round before has been read
    for (int32_t i = threadIdx.x; i < units * plan.unit_sums; i += kThreads) totals[i] = 0;
    if (unit == share) take_tokens(task, plan, q, sums, scales, room);
    __syncthreads();
    walk<FORMAT, COLUMNS>(w, plan, q, begin, end, reader, ring, totals);
    __syncthreads();
    finish<FORMAT>(task, plan, totals, sums, scales, first_row, rows);
  }
}

// ---- host --------------------------------------------------------------------------------------------------

int32_t sums_of_unit(const Weight& w, int32_t columns, int32_t span) {
  return static_cast<int32_t>(int64_t{w.components} * w.segments * columns * span * w.per_byte);
}

// Bytes left for the integers of rounds, or less than none.
int64_t room_for_totals(const Weight& w, const Device& device, int32_t columns) {
  return static_cast<int64_t>(device.shared_bytes) - bytes_of_tokens(w, columns) - bytes_besides(w, columns);
}

bool fits(const Weight& w, const Device& device, int32_t columns, int32_t span) {
  const int64_t integers = int64_t{w.components} * w.segments * columns * span * w.per_byte;
  return integers * 4 <= room_for_totals(w, device, columns);
}

// The tokens of a launch: as many as are taken at once and fit; 0: not even one does.
int32_t tokens_at_once(const LinearTask& task, const Device& device) {
  int32_t tokens = static_cast<int32_t>(least<int64_t>(task.x.rows, kMostColumns / most(task.x.planes, 1)));
  tokens = most(tokens, 1);
  while (tokens > 0 && !fits(task.weight, device, tokens * task.x.planes, 1)) tokens /= 2;
  return tokens;
}

const char* refuses(const LinearTask& task, const Device& device) {
  if (task.source.activation == BITIMPL_ACTIVATION_FLOAT) return "it takes quantised activations";
  if (tokens_at_once(task, device) == 0) {
    return "a token of so many columns, or the sums of so many scale groups, are more than shared memory holds";
  }
  return nullptr;
}

bool prefers(const LinearTask& task, const Device&) { return task.x.rows * task.x.planes <= kMostTokens; }

// Only where the integers are the same however many threads make them.
bool quantises(const LinearTask& task, const Device&) {
  const int32_t activation = task.source.activation;
  return !task.x.prepared && (activation == BITIMPL_ACTIVATION_INT8 || activation == BITIMPL_ACTIVATION_INT16) &&
         task.x.rows * task.x.row_bytes <= kMostQuantised;
}

int64_t scratch(const LinearTask&, const Device&) { return 0; }

// The span that leaves the busiest multiprocessor the least to do; the wider one where it hardly matters.
int32_t best_span(const Weight& w, const Device& device, int32_t columns) {
  int32_t best = 0;
  int64_t least_groups = 0;
  for (int32_t span = kBlockGroups; span >= 1; span /= 2) {
    if (!fits(w, device, columns, span)) continue;
    const int64_t groups = ceil_div<int64_t>(ceil_div<int64_t>(w.groups, span), device.multiprocessors) * span;
    if (best == 0 || 10 * groups < 9 * least_groups) {
      best = span;
      least_groups = groups;
    }
  }
  return best;
}

template <int FORMAT>
int launch_columns(const LinearTask& task, const Plan& plan, const Grid& grid) {
  // 16 aligned bytes at a time, or a byte at a time and one instance for any number of tokens.
  const bool whole = has_whole_steps(task.weight) && reinterpret_cast<uintptr_t>(task.weight.codes) % 16 == 0;
  if (!whole) return launch(gemv_kernel<FORMAT, kMostColumns, false>, grid, task, plan);
  if (plan.columns <= 1) return launch(gemv_kernel<FORMAT, 1, true>, grid, task, plan);
  if (plan.columns <= 2) return launch(gemv_kernel<FORMAT, 2, true>, grid, task, plan);
  if (plan.columns <= 4) return launch(gemv_kernel<FORMAT, 4, true>, grid, task, plan);
  return launch(gemv_kernel<FORMAT, kMostColumns, true>, grid, task, plan);
}

int run(const LinearTask& task, const Device& device, Stream stream, void*) {
  const Weight& w = task.weight;
  const int32_t at_once = tokens_at_once(task, device);
  Plan plan = {};
  plan.quantises = quantises(task, device);
  for (plan.token = 0; plan.token < task.x.rows; plan.token += at_once) {
    plan.tokens = static_cast<int32_t>(least<int64_t>(at_once, task.x.rows - plan.token));
    plan.columns = plan.tokens * task.x.planes;
    plan.span = best_span(w, device, plan.columns);
    plan.units = ceil_div<int64_t>(w.groups, plan.span);
    plan.unit_sums = sums_of_unit(w, plan.columns, plan.span);
    const int64_t blocks = least<int64_t>(plan.units, device.multiprocessors);
    const int64_t units_that_fit = room_for_totals(w, device, plan.columns) / (int64_t{4} * plan.unit_sums);
    const int64_t units_counted = (int64_t{1} << 30) / (int64_t{w.components} * w.steps);  // loads in 32 bits
    plan.round = static_cast<int32_t>(
        least(least(units_that_fit, units_counted), ceil_div(plan.units, blocks)));
    const int64_t bytes = bytes_of_tokens(w, plan.columns) + int64_t{4} * plan.round * plan.unit_sums +
                          bytes_besides(w, plan.columns);
    const Grid grid = {{static_cast<uint32_t>(blocks)}, {kThreads}, static_cast<size_t>(bytes), stream};
    const int status = w.format == BITIMPL_BASE3 ? launch_columns<BITIMPL_BASE3>(task, plan, grid)
                                                 : launch_columns<BITIMPL_TWO_BIT>(task, plan, grid);
    if (status != BITIMPL_OK) return status;
  }
  return BITIMPL_OK;
}

}  // namespace

const LinearKernel kGemv = {"gemv", refuses, prefers, quantises, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
