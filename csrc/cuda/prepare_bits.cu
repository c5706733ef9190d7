// Operands of products of bits: activations and weights as words, and how many of their bits are set.
#include "bit_kernels.h"
#include "bits.cuh"
#include "block.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__device__ __forceinline__ int64_t element_of(const BitTask& task, int64_t pixel_of_all) {
  const Windows& v = task.windows;
  const int64_t sample = pixel_of_all / v.pixels;
  int64_t inside = pixel_of_all - sample * v.pixels;
  int64_t at = sample * task.source.sample_stride;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int64_t before = inside / v.size[d];
    at += (inside - before * v.size[d]) * task.source.spatial_stride[d];
    inside = before;
  }
  return at;
}

__device__ __forceinline__ bool is_set(const BitSource& s, int64_t at) {
  if (s.dtype == BITIMPL_SIGNS) return static_cast<const uint8_t*>(s.x)[at / 8] >> at % 8 & 1;
  return load_float(s.x, s.dtype, at) >= 0.0f;
}

// A warp a pixel of a group: a lane a channel.
__global__ void __launch_bounds__(kThreads) bit_rows_kernel(BitTask task) {
  const int64_t own = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (own >= task.samples * task.windows.pixels * task.groups) return;
  const int64_t pixel = own / task.groups;
  const int64_t group = own - pixel * task.groups;
  const int64_t from = element_of(task, pixel);
  uint32_t* to = const_cast<uint32_t*>(task.x) + pixel * task.pixel_words + group * task.tap_words;
  int32_t* counts = const_cast<int32_t*>(task.x_counts) + own * task.weight.segments;
  for (int32_t segment = 0; segment < task.weight.segments; ++segment) {
    BitUnit unit = bit_unit_at(task, segment);
    const int64_t columns = unit.columns / task.windows.taps;
    const int64_t channel = group * task.group_channels + segment * task.weight.segment;
    int32_t set = 0;
    for (int32_t i = 0; i < unit.words; ++i) {
      const int64_t column = int64_t{i} * 32 + lane;
      const bool bit = column < columns && is_set(task.source, from + (channel + column) * task.source.channel_stride);
      const uint32_t word = ballot(bit);
      set += count_bits(word);
      if (lane == 0) to[unit.first_word + i] = word;
    }
    if (lane == 0) counts[segment] = set;
  }
  // Matrices of tokens are filled up to whole lines.
  for (int64_t i = task.groups * task.tap_words + lane; group == 0 && i < task.pixel_words; i += kWarp) to[i] = 0;
}

__global__ void __launch_bounds__(kThreads) bit_scale_kernel(BitTask task) {
  double* room = shared_memory<double>();
  const int64_t sample = blockIdx.x;
  const int64_t channels = task.groups * task.group_channels;
  const int64_t values = task.windows.pixels * channels;
  float* scale = const_cast<float*>(task.x_scale);
  if (task.source.dtype == BITIMPL_SIGNS) {
    if (threadIdx.x == 0) scale[sample] = task.source.scale[sample];
    return;
  }
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < values; i += kThreads) {
    const int64_t at = element_of(task, sample * task.windows.pixels + i / channels);
    sum += fabsf(load_float(task.source.x, task.source.dtype, at + i % channels * task.source.channel_stride));
  }
  sum = over_block(sum, room, Add{});
  // What is not finite makes the sum so: float32 magnitudes do not add up to infinity in float64.
  if (threadIdx.x == 0) scale[sample] = sum <= 1.7e308 ? static_cast<float>(sum / static_cast<double>(values)) : NAN;
}

// A thread a row of a component: its words, how many bits are set, and the sums of its taps.
__global__ void __launch_bounds__(kThreads) bit_weight_kernel(BitTask task, bool copies) {
  const Weight& w = task.weight;
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (own >= w.components * w.rows) return;
  const uint8_t* from = w.codes + own * ((w.cols + 7) / 8);
  uint32_t* to = const_cast<uint32_t*>(task.w) + own * task.row_words;
  const int64_t component = own / w.rows;
  for (int64_t i = 0; copies && i < task.row_words; ++i) to[i] = 0;
  for (int32_t segment = 0; segment < w.segments; ++segment) {
    const BitUnit unit = bit_unit_at(task, segment);
    const int64_t columns = unit.columns / task.windows.taps;
    int32_t set_of_all = 0;
    for (int32_t tap = 0; tap < task.windows.taps; ++tap) {
      int32_t set = 0;
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t at = tap * columns + segment * w.segment + column;
        const uint32_t bit = from[at / 8] >> at % 8 & 1;
        set += static_cast<int32_t>(bit);
        if (copies) to[int64_t{tap} * task.tap_words + unit.first_word + column / 32] |= bit << column % 32;
      }
      if (task.tap_sums != nullptr) {
        const_cast<int32_t*>(task.tap_sums)[(component * task.windows.taps + tap) * w.rows + own % w.rows] =
            2 * set - static_cast<int32_t>(columns);
      }
      set_of_all += set;
    }
    if (task.w_counts != nullptr) const_cast<int32_t*>(task.w_counts)[own * w.segments + segment] = set_of_all;
  }
}

__global__ void __launch_bounds__(kThreads) begin_signs_kernel(BitTask task) {
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (own < task.samples) task.result.signs.y_scale[own] = 1.0f;
}

Grid grid_of(int64_t threads, Stream stream) {
  return {{static_cast<uint32_t>(ceil_div<int64_t>(threads, kThreads))}, {kThreads}, 0, stream};
}

}  // namespace

int64_t bit_rows_scratch(const BitTask&) { return 0; }

int prepare_bit_rows(const BitTask& task, Stream stream, void*) {
  const Grid samples = {{static_cast<uint32_t>(task.samples)}, {kThreads}, kWarps * sizeof(double), stream};
  const int status = launch(bit_scale_kernel, samples, task);
  if (status != BITIMPL_OK) return status;
  return launch(bit_rows_kernel, grid_of(task.samples * task.windows.pixels * task.groups * kWarp, stream), task);
}

int prepare_bit_weight(const BitTask& task, Stream stream) {
  const bool copies = task.w != nullptr && reinterpret_cast<const uint8_t*>(task.w) != task.weight.codes;
  if (!copies && task.w_counts == nullptr) return BITIMPL_OK;
  return launch(bit_weight_kernel, grid_of(int64_t{task.weight.components} * task.weight.rows, stream), task, copies);
}

int begin_signs(const BitTask& task, Stream stream) {
  return launch(begin_signs_kernel, grid_of(task.samples, stream), task);
}

}  // namespace cuda
}  // namespace bitimpl
