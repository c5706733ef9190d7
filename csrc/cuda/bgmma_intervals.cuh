// Where the signs of a row of the weight change: found once a call, so that a tile of binary_gemm_sm90a.cu
// compares integers in place of forming y.
#ifndef BITIMPL_CUDA_BGMMA_INTERVALS_CUH
#define BITIMPL_CUDA_BGMMA_INTERVALS_CUH

#include "bgmma_loads.cuh"

namespace bitimpl {
namespace cuda {
namespace bgmma {

constexpr int kIntervalThreads = 128;

// The first of -columns .. columns of which `holds` holds, as of all after it; columns + 1 where there is
// none.
template <class Holds>
__device__ __forceinline__ int32_t first_of(int32_t columns, Holds holds) {
  int32_t low = -columns;
  int32_t high = columns + 1;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (holds(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Of a row with one component and one segment, for tokens of scale 1.
__device__ __forceinline__ Interval interval_of(const BitTask& task, int64_t row) {
  const bitimpl_signs& s = task.result.signs;
  const BitUnit unit = bit_unit_at(task, 0);
  const float scale = scale_at(task.weight, 0, row, 0);
  const auto y = [&](int32_t dot) {
    return value_of(task.result, 1.0f, row, 0.0f + scale * static_cast<float>(dot));
  };
  const auto ordinary = [&](float value) { return s.least[row] <= value && value <= s.most[row]; };
  // Between the two ends y rises or falls, and is as finite as they are; of an infinite scale 0 is not
  // between.
  if (!ordinary(y(-unit.columns)) || !ordinary(y(unit.columns)) || !ordinary(y(0))) return {0, -1};
  const bool rises = scale >= 0.0f;
  const auto above = [&](int32_t dot) { return s.lower[row] <= y(dot); };
  const auto below = [&](int32_t dot) { return y(dot) <= s.upper[row]; };
  const int32_t first = first_of(unit.columns, [&](int32_t dot) { return rises ? above(dot) : below(dot); });
  const int32_t end = first_of(unit.columns, [&](int32_t dot) { return rises ? !below(dot) : !above(dot); });
  return {first, most(end - first, 0)};
}

__global__ void __launch_bounds__(kIntervalThreads) bgmma_interval_kernel(BitTask task, Interval* intervals) {
  const int64_t row = int64_t{blockIdx.x} * kIntervalThreads + threadIdx.x;
  if (row < task.weight.rows) intervals[row] = interval_of(task, row);
}

}  // namespace bgmma
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BGMMA_INTERVALS_CUH
