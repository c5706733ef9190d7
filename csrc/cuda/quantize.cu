// Activations as integers (impl.h, Arithmetic): a block a token. Floats by their rule, signs that came as bits.
#include "kernels.h"
#include "quantize.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__device__ Rule rule_of(const Source& s, int64_t cols, int64_t token, bool wide, void* room) {
  uint32_t largest = largest_of_share<kThreads>(s, cols, token, wide);
  largest = over_block(largest, static_cast<uint32_t*>(room), Larger{});
  if (s.activation == BITIMPL_ACTIVATION_INT8 || s.activation == BITIMPL_ACTIVATION_INT16) {
    return rule_of_largest(largest, s.activation);
  }
  const int64_t row = token * s.row_stride;
  Rule rule = {0.0f, 0.0f, NAN};
  double sum = 0.0;
  for (int64_t k = 4 * threadIdx.x; k < cols; k += 4 * kThreads) {
    const Four four = floats_of(load_four(s, row + k, cols - k, wide), s.dtype);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += fabsf(four.x[i]);
  }
  sum = over_block(sum, static_cast<double*>(room), Add{});
  if (s.activation == BITIMPL_ACTIVATION_SIGN) {
    if (finite(largest)) rule.scale = static_cast<float>(sum / static_cast<double>(cols));
    return rule;
  }
  rule.threshold = static_cast<float>(0.75 * (sum / static_cast<double>(cols)));
  double kept = 0.0;
  double count = 0.0;
  for (int64_t k = 4 * threadIdx.x; k < cols; k += 4 * kThreads) {
    const Four four = floats_of(load_four(s, row + k, cols - k, wide), s.dtype);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (fabsf(four.x[i]) > rule.threshold) {
        kept += fabsf(four.x[i]);
        count += 1.0;
      }
    }
  }
  kept = over_block(kept, static_cast<double*>(room), Add{});
  count = over_block(count, static_cast<double*>(room), Add{});
  if (finite(largest)) rule.scale = count == 0.0 ? 0.0f : static_cast<float>(kept / count);
  return rule;
}

__device__ __forceinline__ StepsOfTokens place_in(const Tokens& x, const Weight& w, int64_t token) {
  return {w.steps, x.tile, x.tile == 0 ? 0 : static_cast<int32_t>(token % x.tile)};
}

__global__ void __launch_bounds__(kThreads) quantize_kernel(LinearTask task) {
  const Weight& w = task.weight;
  const Tokens& x = task.x;
  const int64_t token = blockIdx.x;
  int8_t* q[2] = {};
  int32_t* sums[2] = {};
#pragma unroll
  for (int plane = 0; plane < 2; ++plane) {
    if (plane == x.planes) break;
    q[plane] = const_cast<int8_t*>(x.q[plane]) + (x.tile == 0 ? token : token / x.tile * x.tile) * x.row_bytes;
    sums[plane] = const_cast<int32_t*>(x.sums[plane]) + token * w.segments;
    for (int32_t segment = threadIdx.x; segment < w.segments; segment += kThreads) sums[plane][segment] = 0;
  }
  const bool wide = wide_loads(task.source);
  const Rule rule = rule_of(task.source, w.cols, token, wide, shared_memory<void*>());
  if (threadIdx.x == 0) const_cast<float*>(x.scale)[token] = rule.scale;
  __syncthreads();
  quantise_token<kThreads>(w, task.source, token, rule, x.planes, wide, q, sums, place_in(x, w, token));
}

// Signs that came as bits: a thread four columns of a step.
__global__ void __launch_bounds__(kThreads) bytes_of_signs_kernel(LinearTask task) {
  constexpr int kLanesAStep = kStep / 4;
  const Weight& w = task.weight;
  const Tokens& x = task.x;
  const int64_t token = blockIdx.x;
  const uint8_t* from = static_cast<const uint8_t*>(task.source.x) + token * task.source.row_stride / 8;
  int8_t* q = const_cast<int8_t*>(x.q[0]) + (x.tile == 0 ? token : token / x.tile * x.tile) * x.row_bytes;
  int32_t* sums = const_cast<int32_t*>(x.sums[0]) + token * w.segments;
  if (threadIdx.x == 0) const_cast<float*>(x.scale)[token] = task.source.scale[token];
  for (int32_t segment = threadIdx.x; segment < w.segments; segment += kThreads) sums[segment] = 0;
  __syncthreads();
  const int32_t column = threadIdx.x % kLanesAStep * 4;
  const StepsOfTokens place = place_in(x, w, token);
  // Whole warps: what is past the end has no columns.
  for (int32_t first = threadIdx.x / kWarp * (kWarp / kLanesAStep); first < w.steps; first += kThreads / kLanesAStep) {
    const int32_t i = first + threadIdx.x % kWarp / kLanesAStep;
    const Step step = step_at(w, least(i, w.steps - 1));
    const int32_t valid = i < w.steps ? most(least(step.columns - column, 4), 0) : 0;
    uint32_t bits = 0;
    if (valid > 0) bits = from[(step.first + column) / 8] >> column % 8 & ((1u << valid) - 1);
    const uint32_t ones = bits * 0x00204081u & 0x01010101u;  // a byte a bit
    const uint32_t exist = ((1u << valid) - 1) * 0x00204081u & 0x01010101u;
    int32_t total = 2 * count_bits(bits) - valid;
    for (int mask = 1; mask < kLanesAStep; mask *= 2) total += shuffle_xor(total, mask);
    // 1 where the bit is set, 255 (-1) where it is not, 0 where there is no column.
    place(q, i, column, exist * 255 - ones * 254);
    if (i < w.steps && column == 0) add_atomically(sums + step.segment, total);
  }
}

}  // namespace

int quantize(const LinearTask& task, Stream stream) {
  const Grid grid = {{static_cast<uint32_t>(task.x.rows)}, {kThreads}, kThreads / kWarp * sizeof(double), stream};
  if (task.source.dtype == BITIMPL_SIGNS) return launch(bytes_of_signs_kernel, grid, task);
  return launch(quantize_kernel, grid, task);
}

}  // namespace cuda
}  // namespace bitimpl
