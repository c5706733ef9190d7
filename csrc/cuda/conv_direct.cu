// Any convolution of bytes, straight from the image: a block makes 32 positions of 32 rows, a thread four positions of
// one row. The weight is decoded into int8 codes first, rows side by side, so that a warp reads whole lines of them;
// what it reads of the image is one word for all lanes (channels of a group, four at a time) or, where groups are
// single channels, the neighbouring bytes of a pixel.
#include "conv_store.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kDecodeThreads = 256;
constexpr int kOfThread = kConvPositions / (kTileThreads / kWarp);
constexpr int kTapsAtOnce = 32;  // whose pixels are looked up together

// Words (single channels: bytes) of a tap of a row.
__host__ __device__ __forceinline__ int64_t words_of_tap(const ByteConv& task) {
  return task.group_channels == 1 ? 1 : task.group_bytes / 4;
}

__device__ __forceinline__ int32_t code_at(const Weight& w, int32_t component, int64_t row, int64_t column) {
  if (w.format == BITIMPL_BINARY) {
    const int64_t at = (component * w.rows + row) * ceil_div<int64_t>(w.cols, 8) + column / 8;
    return w.codes[at] >> column % 8 & 1 ? 1 : -1;
  }
  const int64_t group = row / w.per_byte;
  const int32_t digit = static_cast<int32_t>(row - group * w.per_byte);
  const int32_t byte = codes_at(w, group, component, step_at(w, static_cast<int32_t>(column / kStep)))[column % kStep];
  if (w.format == BITIMPL_TWO_BIT) return (byte >> 2 * digit & 3) - 1;
  const int32_t power = digit == 0 ? 1 : digit == 1 ? 3 : digit == 2 ? 9 : digit == 3 ? 27 : 81;
  return byte / power % 3 - 1;
}

// Codes [components][taps][words of a tap][rows].
template <bool SINGLE>
__global__ void __launch_bounds__(kDecodeThreads) decode_kernel(ByteConv task, void* codes) {
  const Weight& w = task.weight;
  const int64_t own = int64_t{blockIdx.x} * kDecodeThreads + threadIdx.x;
  const int64_t words = words_of_tap(task);
  if (own >= w.components * task.windows.taps * words * w.rows) return;
  const int64_t place = own / w.rows;
  const int64_t row = own - place * w.rows;
  const int64_t tap = place / words;
  const int32_t component = static_cast<int32_t>(tap / task.windows.taps);
  const int64_t column = (tap - int64_t{component} * task.windows.taps) * task.group_channels;
  if (SINGLE) {
    static_cast<int8_t*>(codes)[own] = static_cast<int8_t>(code_at(w, component, row, column));
    return;
  }
  const int64_t channel = (place - tap * words) * 4;
  uint32_t word = 0;
  for (int i = 0; i < 4 && channel + i < task.group_channels; ++i) {
    word |= static_cast<uint32_t>(code_at(w, component, row, column + channel + i) & 0xff) << 8 * i;
  }
  static_cast<uint32_t*>(codes)[own] = word;
}

struct Room {
  int64_t pixels[kTapsAtOnce][kConvPositions];  // -1: outside the image
  float tile[kConvPositions * kTileStride];
};

// Adds taps [first, first + taps) of a row, whose codes begin at `codes`, to the sums of a thread's positions.
template <bool SINGLE, int PLANES>
__device__ __forceinline__ void add_taps(const ByteConv& task, const Room& room, int32_t taps, int64_t group,
                                         const void* codes, const uint32_t (&border)[PLANES][kOfThread],
                                         int32_t (&sums)[PLANES][kOfThread]) {
  const int64_t words = words_of_tap(task);
  const int64_t rows = task.weight.rows;
  const int warp = threadIdx.x / kWarp;
  for (int32_t tap = 0; tap < taps; ++tap) {
    int64_t at[kOfThread];
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const int64_t pixel = room.pixels[tap][warp * kOfThread + i];
      at[i] = pixel < 0 ? -1 : pixel * task.pixel_bytes + group * task.group_bytes;
    }
    if constexpr (SINGLE) {
      const int32_t code = static_cast<const int8_t*>(codes)[tap * rows];
#pragma unroll
      for (int plane = 0; plane < PLANES; ++plane) {
#pragma unroll
        for (int i = 0; i < kOfThread; ++i) {
          const int32_t x = at[i] < 0 ? static_cast<int8_t>(border[plane][i]) : task.image[plane][at[i]];
          sums[plane][i] += code * x;
        }
      }
    } else {
#pragma unroll 2
      for (int64_t word = 0; word < words; ++word) {
        const uint32_t code = static_cast<const uint32_t*>(codes)[(tap * words + word) * rows];
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane) {
#pragma unroll
          for (int i = 0; i < kOfThread; ++i) {
            const uint32_t x = at[i] < 0 ? border[plane][i]
                                         : *reinterpret_cast<const uint32_t*>(task.image[plane] + at[i] + 4 * word);
            sums[plane][i] = dp4a_signed(code, x, sums[plane][i]);
          }
        }
      }
    }
  }
}

template <bool SINGLE, int PLANES>
__global__ void __launch_bounds__(kTileThreads, 2) conv_any_kernel(ByteConv task, const void* codes,
                                                                   int32_t row_tiles) {
  const Weight& w = task.weight;
  Room& room = *shared_memory<Room>();
  const int64_t position_tile = blockIdx.x / row_tiles;
  const int64_t row_begin = int64_t{blockIdx.x - position_tile * row_tiles} * kConvRows;
  const int64_t first = position_tile * kConvPositions;
  const int64_t total = task.samples * task.windows.positions;
  const int32_t positions = static_cast<int32_t>(least<int64_t>(kConvPositions, total - first));
  const int32_t rows = static_cast<int32_t>(least<int64_t>(kConvRows, w.rows - row_begin));
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t row = row_begin + least(lane, rows - 1);
  const int64_t group = row / task.group_rows;
  const int32_t taps = task.windows.taps;

  float scales[kOfThread];
  uint32_t border[PLANES][kOfThread];
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const int64_t sample = least(first + warp * kOfThread + i, total - 1) / task.windows.positions;
    scales[i] = task.scale[sample];
#pragma unroll
    for (int plane = 0; plane < PLANES; ++plane) border[plane][i] = task.border[plane][sample];
  }
  float t[kOfThread] = {};
  for (int32_t component = 0; component < w.components; ++component) {
    int32_t sums[PLANES][kOfThread] = {};
    for (int32_t tap = 0; tap < taps; tap += kTapsAtOnce) {
      const int32_t count = least(kTapsAtOnce, taps - tap);
      if (component == 0 || taps > kTapsAtOnce) {
        __syncthreads();
        const Place position = position_at(task.windows, least(first + lane, total - 1));
        for (int32_t i = warp; i < count; i += kTileThreads / kWarp) {
          room.pixels[i][lane] = pixel_under(task.windows, position, tap + i);
        }
        __syncthreads();
      }
      const int64_t place = (int64_t{component} * taps + tap) * words_of_tap(task) * w.rows + row;
      const void* from = static_cast<const uint8_t*>(codes) + place * (SINGLE ? 1 : 4);
      add_taps<SINGLE, PLANES>(task, room, count, group, from, border, sums);
    }
    const float scale = scale_at(w, component, row, 0);
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const float dot = PLANES == 1 ? static_cast<float>(sums[0][i])
                                    : static_cast<float>(int64_t{256} * sums[0][i] + sums[PLANES - 1][i]);
      t[i] = t[i] + scale * dot;
    }
  }
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    room.tile[(warp * kOfThread + i) * kTileStride + lane] = value_of(task.result, scales[i], row, t[i]);
  }
  store_tile(task, first, positions, row_begin, rows, room.tile);
}

int64_t codes_of(const ByteConv& task) {
  return task.weight.components * task.windows.taps * words_of_tap(task) * task.weight.rows;
}

template <bool SINGLE>
int start(const ByteConv& task, void* codes, Stream stream) {
  const Grid decode = {{static_cast<uint32_t>(ceil_div<int64_t>(codes_of(task), kDecodeThreads))}, {kDecodeThreads}, 0,
                       stream};
  const int status = launch(decode_kernel<SINGLE>, decode, task, codes);
  if (status != BITIMPL_OK) return status;
  const int64_t row_tiles = ceil_div<int64_t>(task.weight.rows, kConvRows);
  const int64_t tiles = ceil_div<int64_t>(task.samples * task.windows.positions, kConvPositions);
  const Grid grid = {{static_cast<uint32_t>(tiles * row_tiles)}, {kTileThreads}, sizeof(Room), stream};
  const int32_t of_position = static_cast<int32_t>(row_tiles);
  const void* decoded = codes;
  if (task.planes == 2) return launch(conv_any_kernel<SINGLE, 2>, grid, task, decoded, of_position);
  return launch(conv_any_kernel<SINGLE, 1>, grid, task, decoded, of_position);
}

}  // namespace

int64_t direct_codes_bytes(const ByteConv& task) { return codes_of(task) * (task.group_channels == 1 ? 1 : 4); }

int convolve_directly(const ByteConv& task, void* codes, Stream stream) {
  return task.group_channels == 1 ? start<true>(task, codes, stream) : start<false>(task, codes, stream);
}

}  // namespace cuda
}  // namespace bitimpl
