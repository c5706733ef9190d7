// Activations whose channels lie side by side (tokens, images with channels last, signs) as words: a team of
// warps a token, a block of them a part of an image.
#ifndef BITIMPL_CUDA_PREPARE_BIT_ROWS_CUH
#define BITIMPL_CUDA_PREPARE_BIT_ROWS_CUH

#include "prepare_bits.cuh"

namespace bitimpl {
namespace cuda {

struct RowShares {
  SampleShares samples;
  Units units;  // of a sample: segments of a token, or groups of pixels
};

// The part of a sample that a thread's team has.
struct TeamPart {
  int64_t sample;
  int64_t part;
  int32_t warp;  // of the team
};

__device__ __forceinline__ TeamPart team_part(const SampleShares& shares, int64_t block) {
  const int32_t warp = threadIdx.x / kWarp;
  const int64_t own = block * (kPrepareWarps / shares.team) + warp / shares.team;
  const int64_t sample = own / shares.parts;
  return {sample, own - sample * shares.parts, warp % shares.team};
}

// Calls visit(item, chunk) for each chunk of a warp's share: of a single unit every so many chunks, else of
// whole items.
template <class Visit>
__device__ __forceinline__ void for_own_chunks(const RowShares& shares, const TeamPart& own, const Visit& visit) {
  const Units& u = shares.units;
  const int32_t team = shares.samples.team;
  const bool single = u.count == 1;
  const int64_t items = single ? 1 : items_of(u);
  const int32_t chunks = chunks_of_item(u);
  for (int64_t item = single ? 0 : own.part * team + own.warp; item < items; item += shares.samples.parts * team) {
    for (int32_t chunk = single ? own.warp : 0; chunk < chunks; chunk += single ? team : 1) visit(item, chunk);
  }
}

// Where the columns of a sample's word lie, in elements from the sample's first.
__device__ __forceinline__ Columns columns_at(const BitTask& task, const RowShares& shares, const WordPlace& place) {
  if (!place.exists) return {0, 0};
  int64_t first = int64_t{kWarp} * place.inside;
  if (task.windows.pixels == 1 && task.groups == 1) {
    first += place.unit * task.weight.segment;
  } else {
    const int64_t pixel = task.groups == 1 ? place.unit : place.unit / task.groups;
    first += offset_of_pixel(task, shares.samples, pixel) + (place.unit - pixel * task.groups) * task.group_channels;
  }
  return {first, place.columns};
}

// The bytes of a sample's first element (of signs, whose strides are multiples of 8, too).
__device__ __forceinline__ const uint8_t* sample_at(const BitSource& s, int64_t sample) {
  const int64_t first = sample * s.sample_stride;
  const int64_t bytes = s.dtype == BITIMPL_SIGNS ? first / 8 : first * (s.dtype == BITIMPL_F32 ? 4 : 2);
  return static_cast<const uint8_t*>(s.x) + bytes;
}

// Zeros from word `first` of a row on.
__device__ __forceinline__ void fill_row(uint32_t* row, int64_t first, int64_t end, const TeamPart& own, int32_t team) {
  for (int64_t i = first + own.warp * kWarp + threadIdx.x % kWarp; i < end; i += team * kWarp) row[i] = 0;
}

// room: a place a warp.
__device__ __forceinline__ void prepare_sign_rows(const BitTask& task, const RowShares& shares, int64_t block,
                                                  Magnitudes* room) {
  const Units& u = shares.units;
  const int lane = threadIdx.x % kWarp;
  const TeamPart own = team_part(shares.samples, block);
  const bool exists = own.sample < task.samples;
  TakeSigns taker = {};
  if (exists) {
    const uint8_t* from = sample_at(task.source, own.sample);
    const int64_t row_words = task.windows.pixels * task.pixel_words;
    uint32_t* to = const_cast<uint32_t*>(task.x) + own.sample * row_words;
    int32_t* counts = const_cast<int32_t*>(task.x_counts) + own.sample * u.count;
    int32_t set = 0;
    for_own_chunks(shares, own, [&](int64_t item, int32_t chunk) {
      const WordPlace place = word_at(u, item, chunk, lane);
      const Columns columns = columns_at(task, shares, place);
      uint32_t words[2] = {};
      if (task.source.dtype == BITIMPL_SIGNS) {
        words[0] = load_bits(from, columns.first, columns.left);
      } else {
        take_chunk(from, task.source.dtype, columns, taker, words);
      }
      if (place.exists) to[place.unit * task.segment_words + place.inside] = words[0];
      set += count_bits(words[0]);
      if (u.count == 1) return;
      if (u.in_chunk > 0) {
        const int32_t of_unit = over_unit(u, set);
        const int64_t unit = item * u.in_chunk + lane;
        if (lane < u.in_chunk && unit < u.count) counts[unit] = of_unit;
        set = 0;
      } else if (chunk + 1 == chunks_of_item(u)) {
        set = over_warp(set);
        if (lane == 0) counts[item] = set;
        set = 0;
      }
    });
    if (task.windows.pixels == 1) fill_row(to, task.groups * task.tap_words, row_words, own, shares.samples.team);
    taker.seen.set = set;
  }
  const Magnitudes all = over_team(taker.seen, room, shares.samples.team);
  if (!exists || own.warp > 0 || lane > 0) return;
  if (u.count == 1) const_cast<int32_t*>(task.x_counts)[own.sample] = all.set;
  end_part(task, shares.samples, own.sample, own.part, all);
}

// Tokens as planes [p, n, ~n, ~p] of each segment (bits.h): a pass over the token for its threshold, another,
// by then from the caches, for the bits. room: two places a warp.
__device__ __forceinline__ void prepare_plane_rows(const BitTask& task, const RowShares& shares, int64_t block,
                                                   Magnitudes* room) {
  const Units& u = shares.units;
  const int32_t team = shares.samples.team;
  const int lane = threadIdx.x % kWarp;
  const TeamPart own = team_part(shares.samples, block);
  const bool exists = own.sample < task.samples;
  const uint8_t* from = exists ? sample_at(task.source, own.sample) : nullptr;
  const int32_t dtype = task.source.dtype;
  TakeMagnitudes first = {};
  if (exists) {
    for_own_chunks(shares, own, [&](int64_t item, int32_t chunk) {
      uint32_t none[2];
      take_chunk(from, dtype, columns_at(task, shares, word_at(u, item, chunk, lane)), first, none);
    });
  }
  const Magnitudes all = over_team(first.seen, room, team);
  const double mean = sum_of(all) / static_cast<double>(task.group_channels);
  TakeTernary taker = {static_cast<float>(0.75 * mean), {}};
  if (exists) {
    uint32_t* to = const_cast<uint32_t*>(task.x) + own.sample * task.pixel_words;
    int32_t set = 0;
    for_own_chunks(shares, own, [&](int64_t item, int32_t chunk) {
      const WordPlace place = word_at(u, item, chunk, lane);
      uint32_t words[2] = {};
      take_chunk(from, dtype, columns_at(task, shares, place), taker, words);
      set += count_bits(words[0] | words[1]);
      if (!place.exists) return;
      const uint32_t columns = low_bits(place.columns);
      const int32_t section = place.unit == u.count - 1 ? u.last_words : u.words;
      uint32_t* word = to + place.unit * task.segment_words + place.inside;
      word[0] = words[0];
      word[section] = words[1];
      word[2 * section] = ~words[1] & columns;
      word[3 * section] = ~words[0] & columns;
    });
    fill_row(to, task.tap_words, task.pixel_words, own, team);
    taker.kept.set = set;
  }
  const Magnitudes kept = over_team(taker.kept, room + kPrepareWarps, team);
  if (!exists || own.warp > 0 || lane > 0) return;
  if (task.result.dtype == BITIMPL_SIGNS) task.result.signs.y_scale[own.sample] = 1.0f;
  const float scale = kept.set == 0 ? 0.0f : mean_of(sum_of(kept), kept.set);
  const_cast<float*>(task.x_scale)[own.sample] = finite(all.largest) ? scale : NAN;
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_PREPARE_BIT_ROWS_CUH
