// From a block's sums of set bits (bmma_tile.cuh) to y.
#ifndef BITIMPL_CUDA_BMMA_STORE_CUH
#define BITIMPL_CUDA_BMMA_STORE_CUH

#include "bmma_tile.cuh"

namespace bitimpl {
namespace cuda {

// What a position adds to its dot products, and which taps are outside the image: once for all rows.
template <class S>
__device__ __forceinline__ void count_windows(const BitTask& task, const BmmaBlock& block, Tables<S>& tables) {
  const Windows& v = task.windows;
  const bool counts = task.form == Form::kSigns && task.weight.segments == 1;
  for (int line = threadIdx.x; line < S::kPositions; line += S::kThreads) {
    const WindowAt window = tables.window[line];
    int32_t set = 0;
    uint32_t outside = 0;
    int32_t tap = 0;
    int32_t beyond[3];
    for (int32_t z = 0; window.sample >= 0 && z < v.kernel[0]; ++z) {
      beyond[0] = z * v.dilation[0];
      for (int32_t y = 0; y < v.kernel[1]; ++y) {
        beyond[1] = y * v.dilation[1];
        for (int32_t x = 0; x < v.kernel[2]; ++x, ++tap) {
          beyond[2] = x * v.dilation[2];
          if (!holds(v, window, beyond)) {
            outside |= v.taps <= kMaskedTaps ? 1u << tap : 1u;
          } else if (counts) {
            const int64_t line_of_pixel = int64_t{window.at[0] + beyond[0]} * v.size[1] + window.at[1] + beyond[1];
            const int64_t pixel = line_of_pixel * v.size[2] + window.at[2] + beyond[2];
            set += task.x_counts[(window.sample * v.pixels + pixel) * task.groups + block.group];
          }
        }
      }
    }
    tables.of_position[line] = -2 * set;
    tables.outside[line] = outside;
  }
}

// What the block's rows have of their own: their bias, their intervals and (ONE_UNIT) their scale and count.
template <class S, bool ONE_UNIT>
__device__ __forceinline__ void describe_rows(const BitTask& task, const BmmaBlock& block, Tables<S>& tables) {
  const BitResult& r = task.result;
  const BitUnit unit = bit_unit_at(task, 0);
  for (int own = threadIdx.x; own < S::kRows; own += S::kThreads) {
    const bool exists = block.first_row + own < task.group_rows;
    const int64_t row = block.group * task.group_rows + least<int64_t>(block.first_row + own, task.group_rows - 1);
    tables.bias[own] = r.bias == nullptr ? -0.0f : load_float(r.bias, r.bias_dtype, row);  // which changes nothing
    if constexpr (ONE_UNIT) {
      tables.scale[own] = scale_at(task.weight, 0, row, 0);
      tables.of_row[own] = dot_of_set(task, unit, 0, 0, set_of_row(task, unit, row));
    }
    if (r.dtype != BITIMPL_SIGNS) continue;
    tables.lower[own] = exists ? r.signs.lower[row] : INFINITY;  // its bit is 0, whatever the value
    tables.upper[own] = exists ? r.signs.upper[row] : -INFINITY;
    tables.least[own] = exists ? r.signs.least[row] : -INFINITY;
    tables.most[own] = exists ? r.signs.most[row] : INFINITY;
  }
}

// A lane's positions and rows, by fours: sums[i / 2][j / 2][i % 2 * 2 + j % 2] of its position i and row j.
template <class S, class T>
__device__ __forceinline__ T& element(T (&sums)[S::kTilesM][S::kTilesN][4], int i, int j) {
  return sums[i / 2][j / 2][i % 2 * 2 + j % 2];
}

// The row of four that a lane begins them with, in the block.
template <class S>
__device__ __forceinline__ int four_rows(const BmmaPlan& plan, const BmmaLane& lane, int four) {
  return lane.first_row_line + four_rows_of(plan, four, lane.t);
}

__device__ __forceinline__ bool is_outside(const BitTask& task, const WindowAt& window, uint32_t outside, int32_t tap) {
  const Windows& v = task.windows;
  if (v.taps <= kMaskedTaps) return outside >> tap & 1;
  const int32_t slow = tap / v.kernel[2];
  const int32_t beyond[3] = {slow / v.kernel[1] * v.dilation[0], slow % v.kernel[1] * v.dilation[1],
                             tap % v.kernel[2] * v.dilation[2]};
  return !holds(v, window, beyond);
}

// What the taps outside the image change (border_of), where the window of position i has any.
template <class S>
__device__ __forceinline__ void add_border(const BitTask& task, const BmmaPlan& plan, const BmmaBlock& block,
                                           const BmmaLane& lane, const Tables<S>& tables, int32_t component, int i,
                                           int32_t (&dots)[S::kTilesM][S::kTilesN][4]) {
  const Windows& v = task.windows;
  const int line = lane.first_line + 8 * i + lane.g;
  const uint32_t outside = tables.outside[line];
  if (outside == 0) return;
  const WindowAt window = tables.window[line];
#pragma unroll 1
  for (int32_t tap = 0; tap < v.taps; ++tap) {
    if (!is_outside(task, window, outside, tap)) continue;
    const int32_t* sums = task.tap_sums + (int64_t{component} * v.taps + tap) * task.weight.rows +
                          block.group * task.group_rows;
#pragma unroll
    for (int j = 0; j < S::kLaneRows; ++j) {
      const int64_t row = block.first_row + four_rows<S>(plan, lane, j / 4) + j % 4;
      element<S>(dots, i, j) += (v.padding_value + 1) * sums[least(row, task.group_rows - 1)];
    }
  }
}

// From sums of set bits to dot products, in place: but for what the rows add, which `of_row(j)` says.
template <class S, class OfRow>
__device__ __forceinline__ void to_dots(const BitTask& task, const BmmaPlan& plan, const BmmaBlock& block,
                                        const BmmaLane& lane, const Tables<S>& tables, const BitUnit& unit,
                                        OfRow of_row, int32_t (&sums)[S::kTilesM][S::kTilesN][4]) {
  const bool planes = task.form == Form::kPlanes;
  const int32_t weight = planes ? 1 : 4;
  const bool segments = task.weight.segments > 1 && !planes;
#pragma unroll
  for (int i = 0; i < S::kLanePositions; ++i) {
    const int line = lane.first_line + 8 * i + lane.g;
    int32_t of_position = tables.of_position[line];
    if (segments) {  // a matrix of tokens: a sample is a position
      const int32_t sample = tables.window[line].sample;
      of_position = sample < 0 ? 0 : -2 * task.x_counts[int64_t{sample} * task.weight.segments + unit.segment];
    }
#pragma unroll
    for (int j = 0; j < S::kLaneRows; ++j) {
      int32_t& sum = element<S>(sums, i, j);
      sum = weight * sum + of_position + of_row(j);
    }
    if (task.tap_sums != nullptr) add_border<S>(task, plan, block, lane, tables, unit.component, i, sums);
  }
}

// t += scale * float(dot), of a unit whose sums are complete.
template <class S>
__device__ __forceinline__ void add_unit(const BitTask& task, const BmmaPlan& plan, const BmmaBlock& block,
                                         const BmmaLane& lane, const Tables<S>& tables, const BitUnit& unit,
                                         int32_t (&sums)[S::kTilesM][S::kTilesN][4],
                                         float (&t)[S::kTilesM][S::kTilesN][4]) {
  int32_t of_row[S::kLaneRows];
  float scale[S::kLaneRows];
#pragma unroll
  for (int j = 0; j < S::kLaneRows; ++j) {
    const int64_t own = block.first_row + four_rows<S>(plan, lane, j / 4) + j % 4;
    const int64_t row = block.group * task.group_rows + least(own, task.group_rows - 1);
    of_row[j] = dot_of_set(task, unit, 0, 0, set_of_row(task, unit, row));
    scale[j] = scale_at(task.weight, unit.component, row, unit.segment);
  }
  to_dots<S>(task, plan, block, lane, tables, unit, [&](int j) { return of_row[j]; }, sums);
#pragma unroll
  for (int i = 0; i < S::kLanePositions; ++i) {
#pragma unroll
    for (int j = 0; j < S::kLaneRows; ++j) {
      float& sum = element<S>(t, i, j);
      sum = sum + scale[j] * static_cast<float>(element<S>(sums, i, j));
    }
  }
}

__device__ __forceinline__ uint32_t half_of(const BitResult& r, float y) {
  return r.dtype == BITIMPL_BF16 ? bf16_of_float(y) : f16_of_float(y);
}

// Four elements of y, one after another and aligned to four of them.
__device__ __forceinline__ void store_four(const BitResult& r, int64_t at, float a, float b, float c, float d) {
  if (r.dtype == BITIMPL_F32) {
    store_words(static_cast<float*>(r.y) + at, uint4{bits_of(a), bits_of(b), bits_of(c), bits_of(d)});
  } else {
    store_words(static_cast<uint16_t*>(r.y) + at,
                uint2{half_of(r, a) | half_of(r, b) << 16, half_of(r, c) | half_of(r, d) << 16});
  }
}

// Four positions (their lines eight apart) times four rows of y.
template <class S>
__device__ __forceinline__ void store_sixteen(const BitTask& task, const BmmaPlan& plan, const BmmaBlock& block,
                                              const Tables<S>& tables, int line, int own, const float (&y)[4][4]) {
  const BitResult& r = task.result;
  const int64_t left = task.group_rows - block.first_row - own;
  if (left <= 0) return;
  const int64_t row = block.group * task.group_rows + block.first_row + own;
  if (plan.stores == kByPosition) {
    if (tables.window[line].sample < 0) return;
    const int64_t place = tables.place[line];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < left) store_four(r, place + (row + j) * r.channel_stride, y[0][j], y[1][j], y[2][j], y[3][j]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (tables.window[line + 8 * i].sample < 0) continue;
    const int64_t place = tables.place[line + 8 * i] + row * r.channel_stride;
    if (plan.stores == kByRow && left >= 4) {
      store_four(r, place, y[i][0], y[i][1], y[i][2], y[i][3]);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < left) store_value(r, place + j * r.channel_stride, y[i][j]);
    }
  }
}

// y from t, which `sum_of(i, j)` gives for the lane's position i and row j.
template <class S, class SumOf>
__device__ __forceinline__ void store_tile(const BitTask& task, const BmmaPlan& plan, const BmmaBlock& block,
                                           const BmmaLane& lane, const Tables<S>& tables, SumOf sum_of) {
  const bool signs = task.result.dtype == BITIMPL_SIGNS;
  uint32_t bytes[S::kLanePositions];
#pragma unroll
  for (int four = 0; four < S::kLaneRows / 4; ++four) {
    const int own = four_rows<S>(plan, lane, four);
#pragma unroll
    for (int first = 0; first < S::kLanePositions; first += 4) {
      const int line = lane.first_line + 8 * first + lane.g;
      float y[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x_scale = tables.x_scale[line + 8 * i];
#pragma unroll
        for (int j = 0; j < 4; ++j) y[i][j] = sum_of(first + i, 4 * four + j) * x_scale + tables.bias[own + j];
      }
      if (!signs) {
        store_sixteen<S>(task, plan, block, tables, line, own, y);
        continue;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t sample = tables.window[line + 8 * i].sample;
        uint32_t bits = 0;
        bool finite = true;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float value = y[i][j];
          finite = finite && tables.least[own + j] <= value && value <= tables.most[own + j];
          bits |= static_cast<uint32_t>(tables.lower[own + j] <= value && value <= tables.upper[own + j]) << j;
        }
        bytes[first + i] = four % 2 == 0 ? bits : bytes[first + i] | bits << 4;
        if (sample < 0) continue;
        if (!finite) task.result.signs.y_scale[sample] = NAN;
        const int64_t row = block.first_row + own - 4;
        if (four % 2 == 1 && row < task.group_rows) {
          const int64_t bit = tables.place[line + 8 * i] + block.group * task.group_rows + row;
          static_cast<uint8_t*>(task.result.y)[bit / 8] = static_cast<uint8_t>(bytes[first + i]);
        }
      }
    }
  }
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BMMA_STORE_CUH
