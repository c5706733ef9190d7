// Windows as tokens for the kernels of the linear layers, and their results as y: some lanes of a warp take a token,
// 16 bytes of it at a time. A chunk is as much as stays in the second cache until the kernel has read it.
#include "conv_store.cuh"
#include "wgmma_layout.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPiece = 16;  // bytes

// Columns column, .. column + 15 of the window at a position, GRAIN bytes at a time; those beyond the last are 0.
// image: the group's byte 0 of pixel 0.
template <int GRAIN>
__device__ __forceinline__ void load_piece(const ByteConv& task, const int8_t* image, uint32_t border,
                                           const Place& position, int64_t column, uint32_t (&words)[kPiece / 4]) {
  const int32_t channels = static_cast<int32_t>(task.group_channels);
  int32_t tap = static_cast<int32_t>(column / channels);
  int32_t channel = static_cast<int32_t>(column - int64_t{tap} * channels);
  int64_t pixel = tap < task.windows.taps ? pixel_under(task.windows, position, tap) : -1;
#pragma unroll
  for (int i = 0; i < kPiece; i += GRAIN) {
    const int8_t* from = image + pixel * task.pixel_bytes + channel;
    const bool exists = tap < task.windows.taps;
    if (GRAIN == kPiece) {
      uint4 v = {border, border, border, border};
      if (!exists) v = {0, 0, 0, 0};
      if (pixel >= 0) v = *reinterpret_cast<const uint4*>(from);
      words[0] = v.x;
      words[1] = v.y;
      words[2] = v.z;
      words[3] = v.w;
    } else if (GRAIN == 4) {
      words[i / 4] = pixel >= 0 ? *reinterpret_cast<const uint32_t*>(from) : exists ? border : 0;
    } else {
      const uint32_t byte = pixel >= 0 ? static_cast<uint8_t>(*from) : exists ? border & 0xff : 0;
      words[i / 4] = i % 4 == 0 ? byte : words[i / 4] | byte << 8 * (i % 4);
    }
    channel += GRAIN;
    if (GRAIN == kPiece || channel < channels) continue;
    channel = 0;
    ++tap;
    pixel = tap < task.windows.taps ? pixel_under(task.windows, position, tap) : -1;
  }
}

// Where the words of 16 columns of a token go.
__device__ __forceinline__ void store_piece(const Tokens& to, int8_t* q, int64_t token, int32_t piece,
                                            const uint32_t (&words)[kPiece / 4]) {
  if (to.tile == 0) {
    const uint4 v = {words[0], words[1], words[2], words[3]};
    *reinterpret_cast<uint4*>(q + token * to.row_bytes + int64_t{piece} * kPiece) = v;
    return;
  }
  constexpr int kStepPieces = kStep / kPiece;
  const int32_t steps = static_cast<int32_t>(to.row_bytes / kStep);
#pragma unroll
  for (int i = 0; i < kPiece / 4; ++i) {
    const int column = piece % kStepPieces * kPiece + 4 * i;
    *reinterpret_cast<uint32_t*>(q + wgmma::place_of(to.tile, steps, token, piece / kStepPieces, column)) = words[i];
  }
}

template <int GRAIN>
__global__ void __launch_bounds__(kThreads) gather_kernel(ByteConv task, Chunk chunk, Tokens to, int32_t lanes) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % lanes;
  const int64_t token = int64_t{blockIdx.x} * (kThreads / lanes) + static_cast<int32_t>(threadIdx.x) / lanes;
  const bool exists = token < chunk.count;
  const Place position = position_at(task.windows, chunk.first + least(token, chunk.count - 1));
  const int32_t pieces = exists ? static_cast<int32_t>(to.row_bytes / kPiece) : 0;
#pragma unroll
  for (int plane = 0; plane < 2; ++plane) {
    if (plane == task.planes) break;
    const int8_t* image = task.image[plane] + chunk.group * task.group_bytes;
    const uint32_t border = task.border[plane][position.sample];
    int32_t sum = 0;
    for (int32_t piece = lane; piece < pieces; piece += lanes) {
      uint32_t words[kPiece / 4];
      load_piece<GRAIN>(task, image, border, position, int64_t{piece} * kPiece, words);
#pragma unroll
      for (int i = 0; i < kPiece / 4; ++i) sum = dp4a(0x01010101u, words[i], sum);
      store_piece(to, const_cast<int8_t*>(to.q[plane]), token, piece, words);
    }
    for (int mask = 1; mask < lanes; mask *= 2) sum += shuffle_xor(sum, mask);
    if (exists && lane == 0) const_cast<int32_t*>(to.sums[plane])[token] = sum;
  }
  if (exists && lane == 0) const_cast<float*>(to.scale)[token] = task.scale[position.sample];
}

__global__ void __launch_bounds__(kTileThreads) store_kernel(ByteConv task, Chunk chunk, const void* values,
                                                             int32_t dtype, int32_t row_tiles) {
  float* tile = shared_memory<float>();
  const int64_t position_tile = blockIdx.x / row_tiles;
  const int64_t row = int64_t{blockIdx.x - position_tile * row_tiles} * kConvRows;
  const int64_t first = position_tile * kConvPositions;
  const int32_t positions = static_cast<int32_t>(least<int64_t>(kConvPositions, chunk.count - first));
  const int32_t rows = static_cast<int32_t>(least<int64_t>(kConvRows, task.group_rows - row));
  const int32_t lane = threadIdx.x % kWarp;
  for (int32_t p = threadIdx.x / kWarp; p < positions && lane < rows; p += kTileThreads / kWarp) {
    tile[p * kTileStride + lane] = load_float(values, dtype, (first + p) * task.group_rows + row + lane);
  }
  store_tile(task, chunk.first + first, positions, chunk.group * task.group_rows + row, rows, tile);
}

}  // namespace

int gather_windows(const ByteConv& task, const Chunk& chunk, const Tokens& to, Stream stream) {
  const int64_t pieces = to.row_bytes / kPiece;
  int32_t lanes = 4;
  while (lanes < kWarp && lanes < pieces) lanes *= 2;
  const Grid grid = {{static_cast<uint32_t>(ceil_div<int64_t>(chunk.count, kThreads / lanes))}, {kThreads}, 0, stream};
  if (task.group_channels % kPiece == 0) return launch(gather_kernel<kPiece>, grid, task, chunk, to, lanes);
  if (task.group_channels % 4 == 0) return launch(gather_kernel<4>, grid, task, chunk, to, lanes);
  return launch(gather_kernel<1>, grid, task, chunk, to, lanes);
}

int store_chunk(const ByteConv& task, const Chunk& chunk, const void* values, int32_t dtype, Stream stream) {
  const int64_t row_tiles = ceil_div<int64_t>(task.group_rows, kConvRows);
  const int64_t blocks = ceil_div<int64_t>(chunk.count, kConvPositions) * row_tiles;
  const Grid grid = {{static_cast<uint32_t>(blocks)}, {kTileThreads}, kConvPositions * kTileStride * sizeof(float),
                     stream};
  return launch(store_kernel, grid, task, chunk, values, dtype, static_cast<int32_t>(row_tiles));
}

}  // namespace cuda
}  // namespace bitimpl
