// Packed weights as words, with the counts of their bits and the sums of their taps.
#ifndef BITIMPL_CUDA_PREPARE_BIT_WEIGHT_CUH
#define BITIMPL_CUDA_PREPARE_BIT_WEIGHT_CUH

#include "prepare_bits.cuh"

namespace bitimpl {
namespace cuda {

struct WeightShares {
  Units units;      // of a row: segments, or taps
  int32_t copies;   // whether words are to be written
};

// What is known of a row's unit once its set bits are.
__device__ __forceinline__ void end_unit(const BitTask& task, const Units& u, int64_t own, int64_t unit,
                                         int32_t set) {
  const Weight& w = task.weight;
  int32_t* counts = const_cast<int32_t*>(task.w_counts);
  if (counts != nullptr && w.segments > 1) counts[own * w.segments + unit] = set;
  if (task.tap_sums == nullptr) return;
  const int64_t component = own / w.rows;
  int32_t* sums = const_cast<int32_t*>(task.tap_sums) + (component * task.windows.taps + unit) * w.rows;
  sums[own - component * w.rows] = 2 * set - u.columns;
}

// Binary rows: a warp a row of a component.
__device__ __forceinline__ void prepare_binary_weight(const BitTask& task, const WeightShares& shares,
                                                      int64_t block) {
  constexpr int kAtOnce = 4;
  const Weight& w = task.weight;
  const Units& u = shares.units;
  const int lane = threadIdx.x % kWarp;
  const int64_t own = block * kPrepareWarps + threadIdx.x / kWarp;
  if (own >= w.components * w.rows) return;
  const uint8_t* from = w.codes + own * ceil_div<int64_t>(w.cols, 8);
  uint32_t* to = const_cast<uint32_t*>(task.w) + own * task.row_words;
  const int64_t items = items_of(u);
  const int32_t chunks = chunks_of_item(u);
  int32_t set_of_all = 0;
  for (int64_t item = 0; item < items; ++item) {
    int32_t set = 0;
    for (int32_t first = 0; first < chunks; first += kAtOnce) {
      WordPlace place[kAtOnce];
      uint32_t word[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        place[i] = first + i < chunks ? word_at(u, item, first + i, lane) : WordPlace{};
        word[i] = load_bits(from, place[i].unit * u.columns + kWarp * place[i].inside, place[i].columns);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        set += count_bits(word[i]);
        if (shares.copies && place[i].exists) to[place[i].unit * task.segment_words + place[i].inside] = word[i];
      }
    }
    set_of_all += set;
    if (u.in_chunk > 0) {
      const int32_t of_unit = over_unit(u, set);
      const int64_t unit = item * u.in_chunk + lane;
      if (lane < u.in_chunk && unit < u.count) end_unit(task, u, own, unit, of_unit);
    } else {
      set = over_warp(set);
      if (lane == 0) end_unit(task, u, own, item, set);
    }
  }
  set_of_all = over_warp(set_of_all);
  int32_t* counts = const_cast<int32_t*>(task.w_counts);
  if (lane == 0 && counts != nullptr && w.segments == 1) counts[own] = set_of_all;
  if (!shares.copies) return;
  for (int64_t i = int64_t{task.windows.taps} * task.tap_words + lane; i < task.row_words; i += kWarp) to[i] = 0;
}

// ---- ternary codes as planes ---------------------------------------------------------------------------

// Bit k of 32 bytes (eight words) as word k.
__device__ __forceinline__ void transpose_bits(const uint32_t (&bytes)[8], uint32_t (&of_bit)[8]) {
  uint32_t part[8];  // byte k: bit k of eight bytes, of bits 0 to 3 in the even places, 4 to 7 in the odd ones
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    uint32_t low = bytes[i];
    uint32_t high = bytes[i + 1];
#pragma unroll
    for (int shift = 7; shift <= 14; shift += 7) {
      const uint32_t which = shift == 7 ? 0x00aa00aau : 0x0000ccccu;
      const uint32_t of_low = (low ^ low >> shift) & which;
      const uint32_t of_high = (high ^ high >> shift) & which;
      low ^= of_low ^ of_low << shift;
      high ^= of_high ^ of_high << shift;
    }
    const uint32_t across = (low ^ high << 4) & 0xf0f0f0f0u;
    part[i] = low ^ across;
    part[i + 1] = high ^ across >> 4;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t even01 = permute_bytes(part[i], part[i + 2], 0x5140);
    const uint32_t even23 = permute_bytes(part[i + 4], part[i + 6], 0x5140);
    const uint32_t odd01 = permute_bytes(part[i], part[i + 2], 0x7362);
    const uint32_t odd23 = permute_bytes(part[i + 4], part[i + 6], 0x7362);
    of_bit[4 * i] = permute_bytes(even01, even23, 0x5410);
    of_bit[4 * i + 1] = permute_bytes(even01, even23, 0x7632);
    of_bit[4 * i + 2] = permute_bytes(odd01, odd23, 0x5410);
    of_bit[4 * i + 3] = permute_bytes(odd01, odd23, 0x7632);
  }
}

// Rows 0 to 3 of a word of codes as those of two_bit; the fifth of base3 alone likewise.
__device__ __forceinline__ uint32_t first_four(uint32_t word, int32_t format) {
  if (format == BITIMPL_TWO_BIT) return word;
  uint32_t quotient[5];
  Digits<BITIMPL_BASE3>::operands(word, quotient);
  uint32_t four = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) four |= (quotient[j] - 3u * quotient[j + 1]) << 2 * j;
  return four;
}
__device__ __forceinline__ uint32_t fifth(uint32_t word) {
  uint32_t quotient[5];
  Digits<BITIMPL_BASE3>::operands(word, quotient);
  return quotient[4];
}

// Ternary rows as planes [P, N, P, N] of each segment (bits.h): a warp a row group of a component, a lane 32
// columns.
__device__ __forceinline__ void prepare_ternary_weight(const BitTask& task, const WeightShares& shares,
                                                       int64_t block) {
  constexpr int kMostRows = 5;
  const Weight& w = task.weight;
  const Units& u = shares.units;
  const int lane = threadIdx.x % kWarp;
  const int64_t own = block * kPrepareWarps + threadIdx.x / kWarp;
  if (own >= w.components * w.groups) return;
  const int32_t component = static_cast<int32_t>(own / w.groups);
  const int64_t group = own - component * w.groups;
  const int64_t first_row = component * w.rows + group * w.per_byte;
  const int32_t rows = static_cast<int32_t>(least<int64_t>(w.per_byte, w.rows - group * w.per_byte));
  const int64_t items = items_of(u);
  const int32_t chunks = chunks_of_item(u);
  for (int64_t item = 0; item < items; ++item) {
    int32_t set[kMostRows] = {};
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      const WordPlace place = word_at(u, item, chunk, lane);
      uint32_t codes[8] = {};
      if (place.columns > 0) {
        constexpr int kHalf = kStep / 2;
        const Step step = step_at(w, static_cast<int32_t>(place.unit) * w.segment_steps + place.inside / 2);
        const uint8_t* from = codes_at(w, group, component, step) + place.inside % 2 * kHalf;
        const int32_t valid = least(place.columns, kHalf);
        const uint4 low = load_codes(from, valid);
        const uint4 high = load_codes(from + 16, valid - 16);
        const uint32_t loaded[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) codes[i] = loaded[i];
      }
      const uint32_t columns = low_bits(place.columns);
      const int32_t section = place.unit == u.count - 1 ? u.last_words : u.words;
      uint32_t* to = const_cast<uint32_t*>(task.w) + first_row * task.row_words +
                     place.unit * task.segment_words + place.inside;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && w.format != BITIMPL_BASE3) break;
        uint32_t bytes[8];
        uint32_t of_bit[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) bytes[i] = half == 0 ? first_four(codes[i], w.format) : fifth(codes[i]);
        transpose_bits(bytes, of_bit);
#pragma unroll
        for (int j = 4 * half; j < (half == 0 ? 4 : kMostRows); ++j) {
          const uint32_t above = of_bit[2 * (j % 4) + 1] & columns;  // digit 2
          const uint32_t below = ~(of_bit[2 * (j % 4)] | above) & columns;
          if (j >= rows) continue;
          set[j] += count_bits(above) + count_bits(below);
          if (!place.exists || !shares.copies) continue;
          uint32_t* row = to + j * task.row_words;
          row[0] = row[2 * section] = above;
          row[section] = row[3 * section] = below;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kMostRows; ++j) {
      if (j >= rows) break;
      const int64_t unit = u.in_chunk > 0 ? item * u.in_chunk + lane : item;
      const int32_t of_unit = u.in_chunk > 0 ? over_unit(u, set[j]) : over_warp(set[j]);
      if (lane >= most(u.in_chunk, 1) || unit >= u.count || task.w_counts == nullptr) continue;
      const_cast<int32_t*>(task.w_counts)[(first_row + j) * w.segments + unit] = of_unit;
    }
  }
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_PREPARE_BIT_WEIGHT_CUH
