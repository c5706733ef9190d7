// Activations of a convolution as bytes (impl.h, Convolution): x of any type and strides to int8 planes, channels
// last. Blocks take tiles of 64 pixels and 64 bytes of each; they read along whichever of pixels and channels lies
// closer together in x, and turn the tile around in shared memory.
//
// INT8 and INT16 measure the largest magnitude first, TERNARY the mean; SIGN sums magnitudes on the way, and so does
// TERNARY those it keeps. Pieces of a sample are the same whatever the device and the batch, and so are its sums.
#include "block.cuh"
#include "conv_bytes.h"
#include "quantize.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSquareStride = kImageTile + 4;  // an odd number of words: columns lie in different banks
static_assert(kMostPieces <= kThreads, "a thread a piece");

struct Room {
  double sums[kThreads / kWarp];
  int64_t offsets[kImageTile];  // of the tile's pixels in x
  int8_t square[2][kImageTile * kSquareStride];
};

struct Tile {
  int64_t pixel;
  int32_t pixels;
  int64_t byte;
  int32_t bytes;  // a multiple of 4
  int32_t shift;  // 1 << shift: the power of two that holds them
};

__host__ __device__ __forceinline__ int64_t byte_tiles(const ByteConv& task) {
  return ceil_div<int64_t>(task.pixel_bytes, kImageTile);
}
__host__ __device__ __forceinline__ int64_t tiles_of_sample(const ByteConv& task) {
  return byte_tiles(task) * ceil_div<int64_t>(task.windows.pixels, kImageTile);
}

__device__ __forceinline__ Tile tile_at(const ByteConv& task, int64_t index) {
  const int64_t row = index / byte_tiles(task);
  Tile tile;
  tile.pixel = row * kImageTile;
  tile.pixels = static_cast<int32_t>(least<int64_t>(kImageTile, task.windows.pixels - tile.pixel));
  tile.byte = (index - row * byte_tiles(task)) * kImageTile;
  tile.bytes = static_cast<int32_t>(least<int64_t>(kImageTile, task.pixel_bytes - tile.byte));
  tile.shift = 2;
  while (1 << tile.shift < tile.bytes) ++tile.shift;
  return tile;
}

// Element of x where channel 0 of a sample's pixel lies.
__device__ __forceinline__ int64_t offset_of(const ByteConv& task, int64_t sample, int64_t pixel) {
  int64_t at = sample * task.source.sample_stride;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int64_t slower = pixel / task.windows.size[d];
    at += (pixel - slower * task.windows.size[d]) * task.source.spatial_stride[d];
    pixel = slower;
  }
  return at;
}

// The channel of x that a byte of a pixel holds; -1: none.
__device__ __forceinline__ int64_t channel_of(const ByteConv& task, int64_t byte) {
  if (task.group_bytes == task.group_channels) return byte < task.groups * task.group_channels ? byte : -1;
  const int64_t group = byte / task.group_bytes;
  const int64_t channel = byte - group * task.group_bytes;
  return group < task.groups && channel < task.group_channels ? group * task.group_channels + channel : -1;
}

__device__ __forceinline__ float value_at(const BitSource& s, int64_t at) {
  if (s.dtype != BITIMPL_SIGNS) return load_float(s.x, s.dtype, at);
  return static_cast<const uint8_t*>(s.x)[at / 8] >> at % 8 & 1 ? 1.0f : -1.0f;
}

// Calls visit(pixel, byte, exists, x) for all of a tile, by the whole block, which has left the tile before.
template <class Visit>
__device__ __forceinline__ void each_value(const ByteConv& task, int64_t sample, const Tile& tile, Room& room,
                                           Visit visit) {
  if (threadIdx.x < static_cast<uint32_t>(tile.pixels)) {
    room.offsets[threadIdx.x] = offset_of(task, sample, tile.pixel + threadIdx.x);
  }
  __syncthreads();
  const bool along_pixels = task.source.channel_stride > task.source.spatial_stride[2];
  const int32_t slots = along_pixels ? kImageTile * tile.bytes : kImageTile << tile.shift;
#pragma unroll 4
  for (int32_t slot = threadIdx.x; slot < slots; slot += kThreads) {
    const int32_t pixel = along_pixels ? slot % kImageTile : slot >> tile.shift;
    const int32_t byte = along_pixels ? slot / kImageTile : slot & ((1 << tile.shift) - 1);
    if (pixel >= tile.pixels || byte >= tile.bytes) continue;
    const int64_t channel = channel_of(task, tile.byte + byte);
    const int64_t at = room.offsets[pixel] + channel * task.source.channel_stride;
    visit(pixel, byte, channel >= 0, channel >= 0 ? value_at(task.source, at) : 0.0f);
  }
}

__global__ void __launch_bounds__(kThreads) measure_kernel(ByteConv task) {
  Room& room = *shared_memory<Room>();
  const int64_t sample = blockIdx.x / task.pieces;
  const bool sums = task.activation == BITIMPL_ACTIVATION_TERNARY;
  double sum = 0.0;
  uint32_t largest = 0;
  for (int64_t i = blockIdx.x % task.pieces; i < tiles_of_sample(task); i += task.pieces) {
    each_value(task, sample, tile_at(task, i), room, [&](int, int, bool, float x) {
      if (sums) {
        sum += fabsf(x);
      } else {
        largest = most(largest, magnitude_bits(x));
      }
    });
    __syncthreads();
  }
  if (!sums) sum = over_block(largest, reinterpret_cast<uint32_t*>(room.sums), Larger{});
  else sum = over_block(sum, room.sums, Add{});
  if (threadIdx.x == 0) task.measured[blockIdx.x] = sum;
}

__device__ __forceinline__ double sum_of_pieces(const ByteConv& task, const double* of_pieces, int64_t sample,
                                                double* room) {
  const bool has = threadIdx.x < static_cast<uint32_t>(task.pieces);
  return over_block(has ? of_pieces[sample * task.pieces + threadIdx.x] : 0.0, room, Add{});
}

__device__ __forceinline__ bool finite_sum(double sum) { return sum <= 1.7e308; }
__device__ __forceinline__ double values_of_sample(const ByteConv& task) {
  return static_cast<double>(task.groups * task.group_channels) * static_cast<double>(task.windows.pixels);
}

// The rule of a sample from what was measured, but for the scale of TERNARY and SIGN.
__device__ Rule rule_of_sample(const ByteConv& task, int64_t sample, double* room) {
  if (task.activation == BITIMPL_ACTIVATION_SIGN) return {0.0f, 0.0f, NAN};
  if (task.activation == BITIMPL_ACTIVATION_TERNARY) {
    const double sum = sum_of_pieces(task, task.measured, sample, room);
    const float threshold = finite_sum(sum) ? static_cast<float>(0.75 * (sum / values_of_sample(task))) : NAN;
    return {0.0f, threshold, NAN};
  }
  uint32_t largest = task.windows.pads && task.windows.padding_value != 0 ? bits_of(1.0f) : 0;
  if (threadIdx.x < static_cast<uint32_t>(task.pieces)) {
    largest = most(largest, static_cast<uint32_t>(task.measured[sample * task.pieces + threadIdx.x]));
  }
  return rule_of_largest(over_block(largest, reinterpret_cast<uint32_t*>(room), Larger{}), task.activation);
}

__device__ __forceinline__ uint32_t in_each_byte(int32_t value) { return (value & 0xff) * 0x01010101u; }

__global__ void __launch_bounds__(kThreads) image_kernel(ByteConv task) {
  Room& room = *shared_memory<Room>();
  const int64_t sample = blockIdx.x / task.pieces;
  const int64_t piece = blockIdx.x % task.pieces;
  const Rule rule = rule_of_sample(task, sample, room.sums);
  const bool sign = task.activation == BITIMPL_ACTIVATION_SIGN;
  const bool ternary = task.activation == BITIMPL_ACTIVATION_TERNARY;
  if (!sign && !ternary && piece == 0 && threadIdx.x == 0) {
    const Integers border = integers_of(static_cast<float>(task.windows.padding_value), task.activation, rule);
    task.scale[sample] = rule.scale;
    task.border[0][sample] = in_each_byte(border.high);
    if (task.planes == 2) task.border[1][sample] = in_each_byte(border.low);
  }
  double kept = 0.0;
  double count = 0.0;
  for (int64_t i = piece; i < tiles_of_sample(task); i += task.pieces) {
    const Tile tile = tile_at(task, i);
    each_value(task, sample, tile, room, [&](int32_t pixel, int32_t byte, bool exists, float x) {
      const Integers q = exists ? integers_of(x, task.activation, rule) : Integers{0, 0};
      room.square[0][pixel * kSquareStride + byte] = static_cast<int8_t>(q.high);
      if (task.planes == 2) room.square[1][pixel * kSquareStride + byte] = static_cast<int8_t>(q.low);
      if (sign || (ternary && fabsf(x) > rule.threshold)) {
        kept += fabsf(x);
        count += 1.0;
      }
    });
    __syncthreads();
    const int32_t words = 1 << (tile.shift - 2);
    for (int32_t slot = threadIdx.x; slot < tile.pixels * words; slot += kThreads) {
      const int32_t pixel = slot >> (tile.shift - 2);
      const int32_t word = slot & (words - 1);
      if (4 * word >= tile.bytes) continue;
      const int64_t at = (sample * task.windows.pixels + tile.pixel + pixel) * task.pixel_bytes + tile.byte + 4 * word;
#pragma unroll
      for (int plane = 0; plane < 2; ++plane) {
        if (plane == task.planes) break;
        *reinterpret_cast<uint32_t*>(task.image[plane] + at) =
            *reinterpret_cast<const uint32_t*>(room.square[plane] + pixel * kSquareStride + 4 * word);
      }
    }
  }
  if (!sign && !ternary) return;
  kept = over_block(kept, room.sums, Add{});
  if (threadIdx.x == 0) task.kept[blockIdx.x] = kept;
  if (sign) return;
  count = over_block(count, room.sums, Add{});
  if (threadIdx.x == 0) task.counts[blockIdx.x] = count;
}

// The scales of SIGN and TERNARY: a block a sample.
__global__ void __launch_bounds__(kThreads) image_scale_kernel(ByteConv task) {
  double* room = shared_memory<double>();
  const int64_t sample = blockIdx.x;
  float scale;
  if (task.source.dtype == BITIMPL_SIGNS) {
    scale = task.source.scale[sample];
  } else {
    const double sum = sum_of_pieces(task, task.kept, sample, room);
    if (task.activation == BITIMPL_ACTIVATION_SIGN) {
      scale = finite_sum(sum) ? static_cast<float>(sum / values_of_sample(task)) : NAN;
    } else {
      const double count = sum_of_pieces(task, task.counts, sample, room);
      const bool finite = finite_sum(sum_of_pieces(task, task.measured, sample, room));
      scale = !finite ? NAN : count == 0.0 ? 0.0f : static_cast<float>(sum / count);
    }
  }
  if (threadIdx.x != 0) return;
  task.scale[sample] = scale;
  task.border[0][sample] = in_each_byte(task.windows.padding_value);
}

}  // namespace

int32_t pieces_of_sample(const ByteConv& task) {
  return static_cast<int32_t>(least<int64_t>(kMostPieces, tiles_of_sample(task)));
}

int quantize_image(const ByteConv& task, Stream stream) {
  const bool sign = task.activation == BITIMPL_ACTIVATION_SIGN;
  const bool ternary = task.activation == BITIMPL_ACTIVATION_TERNARY;
  const Grid pieces = {{static_cast<uint32_t>(task.samples * task.pieces)}, {kThreads}, sizeof(Room), stream};
  int status = sign ? BITIMPL_OK : launch(measure_kernel, pieces, task);
  if (status == BITIMPL_OK) status = launch(image_kernel, pieces, task);
  if (status != BITIMPL_OK || (!sign && !ternary)) return status;
  const Grid samples = {{static_cast<uint32_t>(task.samples)}, {kThreads}, kThreads / kWarp * sizeof(double), stream};
  return launch(image_scale_kernel, samples, task);
}

}  // namespace cuda
}  // namespace bitimpl
