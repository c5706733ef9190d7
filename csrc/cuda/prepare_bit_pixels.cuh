// Images with channels first as words: a block has 32 or 128 pixels, a lane one or four of them, a warp 32
// channels at a time, which it loads one after the other along the pixels.
#ifndef BITIMPL_CUDA_PREPARE_BIT_PIXELS_CUH
#define BITIMPL_CUDA_PREPARE_BIT_PIXELS_CUH

#include "prepare_bits.cuh"
#include "quantize.cuh"

namespace bitimpl {
namespace cuda {

constexpr int kTileStride = kPrepareWarps + 1;  // words from pixel to pixel in shared memory: no banks in common

struct PixelShares {
  SampleShares samples;   // parts: tiles of pixels by blocks of groups
  int32_t at_once;        // pixels of a lane: 4, or 1
  int32_t groups;         // of a block
  int64_t group_blocks;
};

// Words of 32 channels from `at` on (of the lane's pixels; in elements), of which `channels` exist.
template <int PIXELS>
__device__ __forceinline__ void take_channels(const BitSource& s, int64_t at, int32_t channels,
                                              uint32_t (&words)[PIXELS], Magnitudes& seen) {
  constexpr int kAtOnce = 8;
  const Source source = {s.x, 0, s.dtype, BITIMPL_ACTIVATION_SIGN};
  for (int32_t first = 0; first < channels; first += kAtOnce) {
    RawFour raw[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int32_t valid = first + i < channels ? PIXELS : 0;
      raw[i] = load_four(source, at + (first + i) * s.channel_stride, valid, PIXELS == 4);
    }
    // Four values at a time: of a channel's pixels, or of a pixel's channels.
#pragma unroll
    for (int i = 0; i < kAtOnce; i += 4 / PIXELS) {
      Four four = floats_of(raw[i], s.dtype);
#pragma unroll
      for (int j = 1; j < 4 / PIXELS; ++j) four.x[j] = floats_of(raw[i + j], s.dtype).x[0];
      seen.add(four.x);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        words[j % PIXELS] |= static_cast<uint32_t>(four.x[j] >= 0.0f) << (first + i + j / PIXELS);
      }
    }
  }
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) words[p] &= low_bits(channels);
}

// tile: a place a pixel of kTileStride words; room: a place a warp.
template <int PIXELS>
__device__ __forceinline__ void prepare_sign_pixels(const BitTask& task, const PixelShares& shares, int64_t block,
                                                    uint32_t* tile, Magnitudes* room) {
  constexpr int kPixels = PIXELS * kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t sample = block / shares.samples.parts;
  const int64_t part = block - sample * shares.samples.parts;
  const int64_t first_group = part % shares.group_blocks * shares.groups;
  const int64_t first_pixel = part / shares.group_blocks * kPixels;
  const int32_t pixels = static_cast<int32_t>(least<int64_t>(kPixels, task.windows.pixels - first_pixel));
  const int32_t groups = static_cast<int32_t>(least<int64_t>(shares.groups, task.groups - first_group));
  const int32_t words = groups * task.tap_words;
  const bool own = lane * PIXELS < pixels;
  int64_t at = sample * task.source.sample_stride;
  if (own) at += offset_of_pixel(task, shares.samples, first_pixel + lane * PIXELS);
  const int64_t pixel_of_all = sample * task.windows.pixels + first_pixel;
  uint32_t* to = const_cast<uint32_t*>(task.x) + pixel_of_all * task.pixel_words + first_group * task.tap_words;
  int32_t* counts = const_cast<int32_t*>(task.x_counts) + pixel_of_all * task.groups + first_group;
  Magnitudes seen = {};
  int32_t set = 0;  // of a group of many words
  for (int32_t first = 0; first < words; first += kPrepareWarps) {
    const int32_t word = first + warp;
    if (own && word < words) {
      const int32_t group = word / task.tap_words;
      const int32_t channel = (word - group * task.tap_words) * kWarp;
      const int64_t of_image = (first_group + group) * task.group_channels + channel;
      const int32_t channels = static_cast<int32_t>(least<int64_t>(kWarp, task.group_channels - channel));
      uint32_t of_pixel[PIXELS] = {};
      take_channels(task.source, at + of_image * task.source.channel_stride, channels, of_pixel, seen);
#pragma unroll
      for (int p = 0; p < PIXELS; ++p) tile[(lane * PIXELS + p) * kTileStride + warp] = of_pixel[p];
    }
    __syncthreads();
    const int32_t here = least(words - first, kPrepareWarps);
    for (int32_t i = threadIdx.x; i < pixels * kPrepareWarps; i += kPrepareThreads) {
      const int32_t pixel = i / kPrepareWarps;
      const int32_t of_tile = i % kPrepareWarps;
      if (of_tile < here) to[pixel * task.pixel_words + first + of_tile] = tile[pixel * kTileStride + of_tile];
    }
    // Several groups a block have all their words here; a single one adds them up.
    const int32_t of_group = groups == 1 ? here : task.tap_words;
    for (int32_t i = threadIdx.x; i < pixels * groups; i += kPrepareThreads) {
      const int32_t pixel = i / groups;
      const int32_t group = i - pixel * groups;
      if (groups > 1) set = 0;
      for (int32_t j = 0; j < of_group; ++j) set += count_bits(tile[pixel * kTileStride + group * of_group + j]);
      if (first + here == words) counts[pixel * task.groups + group] = set;
    }
    __syncthreads();
  }
  const Magnitudes all = over_team(seen, room, kPrepareWarps);
  if (threadIdx.x == 0) end_part(task, shares.samples, sample, part, all);
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_PREPARE_BIT_PIXELS_CUH
