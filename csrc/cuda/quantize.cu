// Activations as integers (impl.h, Arithmetic): a block a token.
#include "block.cuh"
#include "kernels.h"
#include "layout.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;

struct Sum {
  __device__ double operator()(double a, double b) const { return a + b; }
};
struct Largest {
  __device__ uint32_t operator()(uint32_t a, uint32_t b) const { return a > b ? a : b; }
};

// What turns a value into integers, and the scale that turns them back.
struct Rule {
  float factor;     // INT8, INT16: q = round(x * factor); 0: a row that is not finite
  float threshold;  // TERNARY
  float scale;
};

struct Integers {
  int32_t high;
  int32_t low;
};

__device__ __forceinline__ Integers integers_of(float x, int32_t activation, const Rule& rule) {
  if (activation == BITIMPL_ACTIVATION_SIGN) return {x >= 0.0f ? 1 : -1, 0};
  if (activation == BITIMPL_ACTIVATION_TERNARY) return {(x > rule.threshold) - (x < -rule.threshold), 0};
  const int32_t value = rule.factor == 0.0f ? 0 : round_to_int(x * rule.factor);
  if (activation == BITIMPL_ACTIVATION_INT8) return {value, 0};
  const int32_t high = (value + 128) >> 8;
  return {high, value - 256 * high};
}

__device__ Rule rule_of(const Source& s, int64_t cols, int64_t token, void* room) {
  const int64_t row = token * s.row_stride;
  uint32_t largest = 0;  // magnitudes of floats order like their bits, and NaN comes out above infinity
  double sum = 0.0;
  for (int64_t k = threadIdx.x; k < cols; k += kThreads) {
    const float magnitude = fabsf(load_float(s.x, s.dtype, row + k));
    largest = most(largest, bits_of(magnitude));
    sum += magnitude;
  }
  largest = over_block(largest, static_cast<uint32_t*>(room), Largest{});
  const bool finite = largest < 0x7f800000u;
  Rule rule = {0.0f, 0.0f, NAN};
  if (s.activation == BITIMPL_ACTIVATION_INT8 || s.activation == BITIMPL_ACTIVATION_INT16) {
    const float limit = s.activation == BITIMPL_ACTIVATION_INT8 ? 127.0f : 32512.0f;
    if (!finite) return rule;
    const float amax = most(float_of_bits(largest), 1e-5f);
    rule.factor = limit / amax;
    rule.scale = amax / limit;
    return rule;
  }
  sum = over_block(sum, static_cast<double*>(room), Sum{});
  if (s.activation == BITIMPL_ACTIVATION_SIGN) {
    if (finite) rule.scale = static_cast<float>(sum / static_cast<double>(cols));
    return rule;
  }
  rule.threshold = static_cast<float>(0.75 * (sum / static_cast<double>(cols)));
  double kept = 0.0;
  double count = 0.0;
  for (int64_t k = threadIdx.x; k < cols; k += kThreads) {
    const float magnitude = fabsf(load_float(s.x, s.dtype, row + k));
    if (magnitude > rule.threshold) {
      kept += magnitude;
      count += 1.0;
    }
  }
  kept = over_block(kept, static_cast<double*>(room), Sum{});
  count = over_block(count, static_cast<double*>(room), Sum{});
  if (finite) rule.scale = count == 0.0 ? 0.0f : static_cast<float>(kept / count);
  return rule;
}

__global__ void __launch_bounds__(kThreads) quantize_kernel(LinearTask task) {
  const Weight& w = task.weight;
  const Source& source = task.source;
  const Tokens& x = task.x;
  const int64_t token = blockIdx.x;
  const Rule rule = rule_of(source, w.cols, token, shared_memory<void*>());
  if (threadIdx.x == 0) const_cast<float*>(x.scale)[token] = rule.scale;
  for (int plane = 0; plane < x.planes; ++plane) {
    for (int32_t segment = threadIdx.x; segment < w.segments; segment += kThreads) {
      const_cast<int32_t*>(x.sums[plane])[token * w.segments + segment] = 0;
    }
  }
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  for (int32_t i = threadIdx.x / kWarp; i < w.steps; i += kThreads / kWarp) {
    const Step step = step_at(w, i);
    int32_t sums[2] = {};
    for (int column = lane; column < kStep; column += kWarp) {
      Integers q = {0, 0};
      if (column < step.columns) {
        const int64_t at = token * source.row_stride + step.first + column;
        q = integers_of(load_float(source.x, source.dtype, at), source.activation, rule);
      }
      const int64_t to = token * x.row_bytes + static_cast<int64_t>(i) * kStep + column;
      const_cast<int8_t*>(x.q[0])[to] = static_cast<int8_t>(q.high);
      if (x.planes == 2) const_cast<int8_t*>(x.q[1])[to] = static_cast<int8_t>(q.low);
      sums[0] += q.high;
      sums[1] += q.low;
    }
    for (int plane = 0; plane < x.planes; ++plane) {
      for (int mask = 1; mask < kWarp; mask *= 2) sums[plane] += shuffle_xor(sums[plane], mask);
      if (lane == 0) {
        add_atomically(const_cast<int32_t*>(x.sums[plane]) + token * w.segments + step.segment, sums[plane]);
      }
    }
  }
}

}  // namespace

int quantize(const LinearTask& task, Stream stream) {
  const Grid grid = {{static_cast<uint32_t>(task.x.rows)}, {kThreads}, kThreads / kWarp * sizeof(double), stream};
  return launch(quantize_kernel, grid, task);
}

}  // namespace cuda
}  // namespace bitimpl
