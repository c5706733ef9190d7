// Any shape, any group size, any number of tokens: a warp a row group and token. What the kernels made for speed
// refuse comes here; the words of a row group are read once for each token.
#include "kernels.h"
#include "layout.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kLaneColumns = 16;                   // of one load
constexpr int kLanesAStep = kStep / kLaneColumns;  // 4
constexpr int kStepsAtOnce = kWarp / kLanesAStep;  // 8

// Sums of operands over steps [begin, end) of one segment, in every lane.
template <int FORMAT>
__device__ void sum_steps(const Weight& w, const Tokens& x, int64_t group, int64_t token, int32_t component,
                          int32_t begin, int32_t end, int32_t (&sums)[2][Digits<FORMAT>::kRows]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const int lane = threadIdx.x % kWarp;
  const int column = lane % kLanesAStep * kLaneColumns;
  for (int32_t i = begin + lane / kLanesAStep; i < end; i += kStepsAtOnce) {
    const Step step = step_at(w, i);
    const uint4 codes = load_codes(codes_at(w, group, component, step) + column, most(step.columns - column, 0));
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int plane = 0; plane < 2; ++plane) {
      if (plane == x.planes) break;
      const uint4 q = *reinterpret_cast<const uint4*>(x.q[plane] + token * x.row_bytes +
                                                      static_cast<int64_t>(i) * kStep + column);
      const uint32_t four[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        uint32_t operands[kRows];
        Digits<FORMAT>::operands(words[word], operands);
#pragma unroll
        for (int j = 0; j < kRows; ++j) sums[plane][j] = dp4a(operands[j], four[word], sums[plane][j]);
      }
    }
  }
#pragma unroll
  for (int plane = 0; plane < 2; ++plane) {
    if (plane == x.planes) break;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      for (int mask = 1; mask < kWarp; mask *= 2) sums[plane][j] += shuffle_xor(sums[plane][j], mask);
    }
    Digits<FORMAT>::rows(sums[plane]);
  }
}

template <int FORMAT>
__global__ void __launch_bounds__(kWarps* kWarp) any_kernel(LinearTask task) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  constexpr int32_t kMostSteps = static_cast<int32_t>(Digits<FORMAT>::kMostColumns / kStep);
  const Weight& w = task.weight;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (group >= w.groups) return;
  for (int64_t token = blockIdx.y; token < task.x.rows; token += gridDim.y) {
    float t[kRows] = {};
    for (int32_t component = 0; component < w.components; ++component) {
      for (int32_t segment = 0; segment < w.segments; ++segment) {
        const int32_t end = least((segment + 1) * w.segment_steps, w.steps);
        int32_t codes[kRows][2] = {};
        for (int32_t step = segment * w.segment_steps; step < end; step += kMostSteps) {
          int32_t sums[2][kRows] = {};
          sum_steps<FORMAT>(w, task.x, group, token, component, step, least(step + kMostSteps, end), sums);
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            codes[j][0] += sums[0][j];
            codes[j][1] += sums[1][j];
          }
        }
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const int64_t row = group * kRows + j;
          if (row >= w.rows) break;
          const float dot = dot_of(task.x, codes[j], token, segment, w.segments);
          t[j] = t[j] + scale_at(w, component, row, segment) * dot;
        }
      }
    }
    if (threadIdx.x % kWarp != 0) continue;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t row = group * kRows + j;
      if (row < w.rows) store(task.result, task.x.scale[token], token, row, t[j]);
    }
  }
}

const char* refuses(const LinearTask& task, const Device&) {
  return task.source.activation == BITIMPL_ACTIVATION_FLOAT ? "it takes quantised activations" : nullptr;
}

bool prefers(const LinearTask&, const Device&) { return true; }
bool quantises(const LinearTask&, const Device&) { return false; }
int64_t scratch(const LinearTask&, const Device&) { return 0; }

int run(const LinearTask& task, const Device&, Stream stream, void*) {
  const int64_t blocks = ceil_div<int64_t>(task.weight.groups, kWarps);
  const Grid grid = {{static_cast<uint32_t>(blocks), static_cast<uint32_t>(least<int64_t>(task.x.rows, 65535))},
                     {kWarps * kWarp}, 0, stream};
  if (task.weight.format == BITIMPL_BASE3) return launch(any_kernel<BITIMPL_BASE3>, grid, task);
  return launch(any_kernel<BITIMPL_TWO_BIT>, grid, task);
}

}  // namespace

const LinearKernel kAny = {"any", refuses, prefers, quantises, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
