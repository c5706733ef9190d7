// What the parts of the preparation of bits share. Its blocks are of one size, whatever part of it they do.
#ifndef BITIMPL_CUDA_PREPARE_BITS_CUH
#define BITIMPL_CUDA_PREPARE_BITS_CUH

#include "bit_words.cuh"
#include "bits.cuh"

namespace bitimpl {
namespace cuda {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareWarps = kPrepareThreads / kWarp;

// How samples are shared out: `parts` blocks or teams of warps each, whose sums meet in `sums` (parts > 1).
struct SampleShares {
  int64_t parts;
  int32_t team;  // warps, a power of two: several teams of a block have a sample each
  int32_t even;  // pixel p lies at p times the innermost stride
  double* sums;  // [samples, parts]: NaN where a value was not finite
};

// Where pixel `inside` of a sample lies, in elements from the sample's first.
__device__ __forceinline__ int64_t offset_of_pixel(const BitTask& task, const SampleShares& shares, int64_t inside) {
  const Windows& v = task.windows;
  const BitSource& s = task.source;
  if (shares.even) return inside * s.spatial_stride[2];
  int64_t at = 0;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int64_t before = inside / v.size[d];
    at += (inside - before * v.size[d]) * s.spatial_stride[d];
    inside = before;
  }
  return at;
}

// Ends a sample's part, in one thread of its team: what `all` has seen is its share of the mean.
__device__ __forceinline__ void end_part(const BitTask& task, const SampleShares& shares, int64_t sample, int64_t part,
                                         const Magnitudes& all) {
  if (part == 0 && task.result.dtype == BITIMPL_SIGNS) task.result.signs.y_scale[sample] = 1.0f;
  float* scale = const_cast<float*>(task.x_scale) + sample;
  if (task.source.dtype == BITIMPL_SIGNS) {
    if (part == 0) *scale = task.source.scale[sample];
  } else if (shares.parts > 1) {
    shares.sums[sample * shares.parts + part] = sum_of(all);
  } else {
    *scale = mean_of(sum_of(all), task.windows.pixels * task.groups * task.group_channels);
  }
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_PREPARE_BITS_CUH
