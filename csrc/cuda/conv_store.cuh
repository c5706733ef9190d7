// The end of convolutions of bytes: a tile of y in shared memory goes out along whichever of channels and positions
// lies closer together.
#ifndef BITIMPL_CUDA_CONV_STORE_CUH
#define BITIMPL_CUDA_CONV_STORE_CUH

#include "bits.cuh"
#include "conv_bytes.h"

namespace bitimpl {
namespace cuda {

// Values of position p and row r at p * kTileStride + r.
constexpr int kTileStride = kConvRows + 1;
constexpr int kTileThreads = 256;

// Positions first, .. first + positions - 1 of all samples and rows row, .. row + rows - 1 of the weight, a multiple
// of 8 where y is of signs. By the whole block, which has written `tile`.
__device__ __forceinline__ void store_tile(const ByteConv& task, int64_t first, int32_t positions, int64_t row,
                                           int32_t rows, const float* tile) {
  const BitResult& y = task.result;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  __syncthreads();
  if (y.dtype == BITIMPL_SIGNS) {
    constexpr int kBytes = kConvRows / 8;
    const int32_t position = threadIdx.x / kBytes;
    const int32_t from = threadIdx.x % kBytes * 8;
    if (position >= positions || from >= rows) return;
    const Place place = position_at(task.windows, first + position);
    uint32_t bits = 0;
    for (int32_t r = from; r < least(from + 8, rows); ++r) {
      const bool bit = sign_of(y, place.sample, row + r, tile[position * kTileStride + r]);
      bits |= static_cast<uint32_t>(bit) << (r - from);
    }
    static_cast<uint8_t*>(y.y)[(place_of(y, place) + row + from) / 8] = static_cast<uint8_t>(bits);
  } else if (y.channel_stride > y.spatial_stride[2]) {
    if (lane >= positions) return;
    const int64_t at = place_of(y, position_at(task.windows, first + lane));
    for (int32_t r = warp; r < rows; r += kTileThreads / kWarp) {
      store_value(y, at + (row + r) * y.channel_stride, tile[lane * kTileStride + r]);
    }
  } else {
    if (lane >= rows) return;
    for (int32_t p = warp; p < positions; p += kTileThreads / kWarp) {
      const int64_t at = place_of(y, position_at(task.windows, first + p));
      store_value(y, at + (row + lane) * y.channel_stride, tile[p * kTileStride + lane]);
    }
  }
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_CONV_STORE_CUH
