// Operands of products of bits (bits.h): activations and weights as words with the counts of their bits,
// scales of samples, and the scales of a y of signs begun. All of it is one grid, whose blocks have one part
// each; images whose samples take several blocks ask for a second one, which adds up their sums.
#include "bit_kernels.h"
#include "prepare_bit_pixels.cuh"
#include "prepare_bit_rows.cuh"
#include "prepare_bit_weight.cuh"

namespace bitimpl {
namespace cuda {
namespace {

enum class Layout { kRows, kPixels, kPlanes };  // of the activations

struct Preparation {
  RowShares rows;      // Layout::kRows, kPlanes
  PixelShares pixels;  // Layout::kPixels
  WeightShares weight;
  int64_t x_blocks;
  int64_t weight_blocks;
  int64_t begin_blocks;  // where there are no x_blocks to begin signs
};

template <Layout LAYOUT>
__global__ void __launch_bounds__(kPrepareThreads, 2) prepare_bits_kernel(BitTask task, Preparation all) {
  int64_t block = blockIdx.x;
  if (block < all.x_blocks) {
    Magnitudes* room = shared_memory<Magnitudes>();
    if (LAYOUT == Layout::kRows) prepare_sign_rows(task, all.rows, block, room);
    if (LAYOUT == Layout::kPlanes) prepare_plane_rows(task, all.rows, block, room);
    if (LAYOUT == Layout::kPixels) {
      uint32_t* tile = reinterpret_cast<uint32_t*>(room + kPrepareWarps);
      if (all.pixels.at_once == 4) {
        prepare_sign_pixels<4>(task, all.pixels, block, tile, room);
      } else {
        prepare_sign_pixels<1>(task, all.pixels, block, tile, room);
      }
    }
    return;
  }
  block -= all.x_blocks;
  if (block < all.weight_blocks) {
    if (LAYOUT == Layout::kPlanes) {
      prepare_ternary_weight(task, all.weight, block);
    } else {
      prepare_binary_weight(task, all.weight, block);
    }
    return;
  }
  const int64_t sample = (block - all.weight_blocks) * kPrepareThreads + threadIdx.x;
  if (sample < task.samples) task.result.signs.y_scale[sample] = 1.0f;
}

// A warp a sample: its mean from the sums of its parts.
__global__ void __launch_bounds__(kPrepareThreads) sample_scale_kernel(BitTask task, SampleShares shares) {
  const int64_t sample = int64_t{blockIdx.x} * kPrepareWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (sample >= task.samples) return;
  double sum = 0.0;
  for (int64_t part = lane; part < shares.parts; part += kWarp) sum += shares.sums[sample * shares.parts + part];
  for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  const int64_t values = task.windows.pixels * task.groups * task.group_channels;
  if (lane == 0) const_cast<float*>(task.x_scale)[sample] = mean_of(sum, values);
}

// ---- host ------------------------------------------------------------------------------------------------

Layout layout_of(const BitTask& task) {
  constexpr int64_t kFewChannels = 8;  // lanes side by side load more of such pixels than of their channels
  if (task.form == Form::kPlanes) return Layout::kPlanes;
  if (task.source.dtype == BITIMPL_SIGNS) return Layout::kRows;
  const bool few = task.windows.pixels > 1 && task.groups * task.group_channels <= kFewChannels;
  return task.source.channel_stride != 1 || few ? Layout::kPixels : Layout::kRows;
}

// Segments of a row, or (units a sample or a row of the weight) parts of one segment.
Units units_of_line(const BitTask& task, int64_t units) {
  const Weight& w = task.weight;
  const int32_t sections = sections_of(task.form);
  const int32_t words = task.segment_words / sections;
  if (w.segments == 1) return make_units(units, task.group_channels, task.group_channels, words, words);
  const int64_t last = w.cols - (w.segments - 1) * w.segment;
  const int32_t last_words = (task.tap_words - (w.segments - 1) * task.segment_words) / sections;
  return make_units(w.segments, w.segment, last, words, last_words);
}

// Of y and x, whether pixels lie at multiples of the innermost stride.
int32_t is_even(const BitTask& task) {
  const Windows& v = task.windows;
  const int64_t* stride = task.source.spatial_stride;
  return (v.size[1] == 1 || stride[1] == v.size[2] * stride[2]) &&
         (v.size[0] == 1 || stride[0] == int64_t{v.size[1]} * v.size[2] * stride[2]);
}

RowShares share_rows(const BitTask& task) {
  RowShares shares = {{1, 1, is_even(task), nullptr}, units_of_line(task, task.windows.pixels * task.groups)};
  const Units& u = shares.units;
  const int64_t pieces = u.count == 1 ? chunks_of_item(u) : items_of(u);
  while (shares.samples.team < kPrepareWarps && shares.samples.team < pieces) shares.samples.team *= 2;
  if (task.windows.pixels > 1) shares.samples.parts = ceil_div<int64_t>(pieces, kPrepareWarps);
  return shares;
}

PixelShares share_pixels(const BitTask& task) {
  constexpr int64_t kManyPixels = 512;
  constexpr int kLoad = 4;
  PixelShares shares = {{1, kPrepareWarps, is_even(task), nullptr}, 1, 1, 1};
  const BitSource& s = task.source;
  const int64_t pixels = task.windows.pixels;
  const bool loads_four = shares.samples.even && s.spatial_stride[2] == 1 && pixels % kLoad == 0 &&
                          pixels >= kManyPixels && s.sample_stride % kLoad == 0 && s.channel_stride % kLoad == 0 &&
                          reinterpret_cast<uintptr_t>(s.x) % (s.dtype == BITIMPL_F32 ? 16 : 8) == 0;
  if (loads_four) shares.at_once = kLoad;
  shares.groups = most(kPrepareWarps / task.tap_words, 1);
  shares.group_blocks = ceil_div<int64_t>(task.groups, shares.groups);
  shares.samples.parts = ceil_div<int64_t>(pixels, kWarp * shares.at_once) * shares.group_blocks;
  return shares;
}

}  // namespace

// Of either layout of an image: sizes alone are known when memory is asked for.
int64_t bit_rows_scratch(const BitTask& task) {
  BitTask first = task;
  first.source = {};
  const int64_t parts = most(share_pixels(first).samples.parts, share_rows(first).samples.parts);
  return parts > 1 ? task.samples * parts * static_cast<int64_t>(sizeof(double)) : 0;
}

int prepare_bits(const BitTask& task, int needs, Stream stream, void* scratch) {
  const Weight& w = task.weight;
  const Layout layout = layout_of(task);
  Preparation all = {};
  SampleShares& samples = layout == Layout::kPixels ? all.pixels.samples : all.rows.samples;
  size_t shared_bytes = 2 * kPrepareWarps * sizeof(Magnitudes);
  if (needs & kNeedsRows) {
    if (layout == Layout::kPixels) {
      all.pixels = share_pixels(task);
      shared_bytes += kWarp * all.pixels.at_once * kTileStride * sizeof(uint32_t);
    } else {
      all.rows = share_rows(task);
    }
    samples.sums = static_cast<double*>(scratch);
    all.x_blocks = ceil_div<int64_t>(task.samples * samples.parts, kPrepareWarps / samples.team);
  } else if (task.result.dtype == BITIMPL_SIGNS) {
    all.begin_blocks = ceil_div<int64_t>(task.samples, kPrepareThreads);
  }
  const bool copies = task.w != nullptr && reinterpret_cast<const uint8_t*>(task.w) != w.codes;
  if ((needs & (kNeedsWords | kNeedsCounts)) && (copies || task.w_counts != nullptr)) {
    const int64_t rows = task.form == Form::kPlanes ? w.groups : w.rows;
    all.weight = {units_of_line(task, task.windows.taps), copies};
    all.weight_blocks = ceil_div<int64_t>(w.components * rows, kPrepareWarps);
  }
  const int64_t blocks = all.x_blocks + all.weight_blocks + all.begin_blocks;
  if (blocks == 0) return BITIMPL_OK;
  const Grid grid = {{static_cast<uint32_t>(blocks)}, {kPrepareThreads}, shared_bytes, stream};
  const auto kernel = layout == Layout::kRows     ? prepare_bits_kernel<Layout::kRows>
                      : layout == Layout::kPixels ? prepare_bits_kernel<Layout::kPixels>
                                                  : prepare_bits_kernel<Layout::kPlanes>;
  const int status = launch(kernel, grid, task, all);
  if (status != BITIMPL_OK || samples.parts <= 1 || task.source.dtype == BITIMPL_SIGNS) return status;
  const uint32_t scale_blocks = static_cast<uint32_t>(ceil_div<int64_t>(task.samples, kPrepareWarps));
  return launch(sample_scale_kernel, Grid{{scale_blocks}, {kPrepareThreads}, 0, stream}, task, samples);
}

}  // namespace cuda
}  // namespace bitimpl
