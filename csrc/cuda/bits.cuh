// What the kernels of products of bits share: units, windows, and the way from sums of set bits to y.
#ifndef BITIMPL_CUDA_BITS_CUH
#define BITIMPL_CUDA_BITS_CUH

#include "bits.h"
#include "layout.cuh"

namespace bitimpl {
namespace cuda {

__host__ __device__ __forceinline__ int32_t units_of(const BitTask& task) {
  return task.weight.components * task.weight.segments;
}

// Of all samples' y.
__host__ __device__ __forceinline__ int64_t positions_of(const BitTask& task) {
  return task.samples * task.windows.positions;
}

// Whether the window of a position is the pixel of that number.
inline bool is_matrix(const BitTask& task) {
  const Windows& v = task.windows;
  return v.taps == 1 && !v.pads && v.pixels == v.positions;
}

__host__ __device__ __forceinline__ BitUnit bit_unit_at(const BitTask& task, int32_t index) {
  const Weight& w = task.weight;
  BitUnit unit;
  unit.component = index / w.segments;
  unit.segment = index - unit.component * w.segments;
  unit.first_word = unit.segment * task.segment_words;
  unit.words = least(task.segment_words, task.tap_words - unit.first_word);
  unit.columns = static_cast<int32_t>(least(w.segment, w.cols - unit.segment * w.segment));
  return unit;
}

// Whether ternary values are better multiplied as planes of bits than as bytes, for a kernel of mma.sync or wgmma to
// ask in prefers(): four products of bits a column at eight times the rate of bytes, with planes of the weight to be
// written first (NOTES.md, planes, has the reckoning). Signs: always.
inline bool planes_pay(const BitTask& task, const Device& device) {
  constexpr int64_t kTokens = 1024;  // fewer do not repay the planes of the weight
  constexpr int64_t kSize = 1024;
  constexpr int kAmpere = 80, kHopper = 90;  // between them, products of bits and of bytes are the same instruction's
  if (task.form != Form::kPlanes) return true;
  const int64_t filled = int64_t{task.tap_words} * 32 / kPlaneSections;
  return device.architecture >= kAmpere && device.architecture < kHopper && task.samples >= kTokens &&
         task.weight.rows >= kSize && task.weight.cols >= kSize && 4 * filled <= 5 * task.weight.cols;
}

// A position of y, or a place of a window in x: which may lie outside.
struct Place {
  int64_t sample;
  int32_t at[3];
};

// Position `index` of all samples' y.
__device__ __forceinline__ Place position_at(const Windows& v, int64_t index) {
  Place place;
  place.sample = index / v.positions;
  int64_t inside = index - place.sample * v.positions;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int64_t before = inside / v.out[d];
    place.at[d] = static_cast<int32_t>(inside - before * v.out[d]);
    inside = before;
  }
  return place;
}

// The pixel of x (of all samples) under a tap of the window at a position of y; -1 outside the image.
__device__ __forceinline__ int64_t pixel_under(const Windows& v, const Place& position, int32_t tap) {
  int32_t rest = tap;
  int64_t pixel = 0;
  int64_t step = 1;
  bool inside = true;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int32_t slower = rest / v.kernel[d];
    const int64_t beyond = int64_t{rest - slower * v.kernel[d]} * v.dilation[d];
    const int64_t at = int64_t{position.at[d]} * v.stride[d] - v.before[d] + beyond;
    inside = inside && at >= 0 && at < v.size[d];
    pixel += at * step;
    step *= v.size[d];
    rest = slower;
  }
  return inside ? position.sample * v.pixels + pixel : -1;
}

// Set bits of x in the windows' pixels of a unit, at a position of y; 0 for kPlanes, whose dot does without.
__device__ __forceinline__ int32_t set_under(const BitTask& task, const Place& position, int64_t group,
                                             int32_t segment) {
  if (task.form == Form::kPlanes) return 0;
  int32_t set = 0;
  for (int32_t tap = 0; tap < task.windows.taps; ++tap) {
    const int64_t pixel = pixel_under(task.windows, position, tap);
    if (pixel >= 0) set += task.x_counts[(pixel * task.groups + group) * task.weight.segments + segment];
  }
  return set;
}

// What the pixels outside the image, counted as -1, are to be changed by at a position and a row of the weight.
__device__ __forceinline__ int32_t border_of(const BitTask& task, const Place& position, int32_t component,
                                             int64_t row) {
  if (task.tap_sums == nullptr) return 0;
  int32_t sum = 0;
  for (int32_t tap = 0; tap < task.windows.taps; ++tap) {
    if (pixel_under(task.windows, position, tap) < 0) {
      sum += task.tap_sums[(int64_t{component} * task.windows.taps + tap) * task.weight.rows + row];
    }
  }
  return (task.windows.padding_value + 1) * sum;
}

// The dot product of a unit, but for the border, from the set bits of x & w, of x and (w_counts) of w.
__device__ __forceinline__ int32_t dot_of_set(const BitTask& task, const BitUnit& unit, int32_t both, int32_t of_x,
                                              int32_t of_w) {
  if (task.form == Form::kPlanes) return both - of_w;
  return unit.columns - 2 * of_x - 2 * of_w + 4 * both;
}

__device__ __forceinline__ int32_t set_of_row(const BitTask& task, const BitUnit& unit, int64_t row) {
  return task.w_counts[(unit.component * task.weight.rows + row) * task.weight.segments + unit.segment];
}

// Element of y where a position's channel 0 lies.
__device__ __forceinline__ int64_t place_of(const BitResult& r, const Place& position) {
  int64_t place = position.sample * r.sample_stride;
#pragma unroll
  for (int d = 0; d < 3; ++d) place += position.at[d] * r.spatial_stride[d];
  return place;
}

// y from t, the sum over components and segments (impl.h, Arithmetic), before it is rounded to its type.
__device__ __forceinline__ float value_of(const BitResult& r, float x_scale, int64_t row, float t) {
  const float y = t * x_scale;
  return r.bias == nullptr ? y : y + load_float(r.bias, r.bias_dtype, row);
}

__device__ __forceinline__ void store_value(const BitResult& r, int64_t at, float y) {
  if (r.dtype == BITIMPL_F32) {
    static_cast<float*>(r.y)[at] = y;
  } else {
    static_cast<uint16_t*>(r.y)[at] = r.dtype == BITIMPL_BF16 ? bf16_of_float(y) : f16_of_float(y);
  }
}

// The sign of y in channel `row`. A y that is not finite makes its sample's scale NaN.
__device__ __forceinline__ bool sign_of(const BitResult& r, int64_t sample, int64_t row, float y) {
  if (!(r.signs.least[row] <= y && y <= r.signs.most[row])) r.signs.y_scale[sample] = NAN;
  return r.signs.lower[row] <= y && y <= r.signs.upper[row];
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BITS_CUH
