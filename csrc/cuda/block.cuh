// Sums and maxima of a whole block.
#ifndef BITIMPL_CUDA_BLOCK_CUH
#define BITIMPL_CUDA_BLOCK_CUH

#include "ptx.cuh"

namespace bitimpl {
namespace cuda {

// The value of `join` over all threads, in all of them. `room`: one T a warp, free for use again after the next
// barrier. join is associative, and commutative where the result is to be the same for every order.
template <class T, class Join>
__device__ __forceinline__ T over_block(T value, T* room, Join join) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = join(value, shuffle_xor(value, mask));
  __syncthreads();
  if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = room[0];
  for (uint32_t warp = 1; warp < blockDim.x / kWarp; ++warp) value = join(value, room[warp]);
  return value;
}

// Magnitudes of floats order like their bits, and NaN comes out above infinity.
__device__ __forceinline__ uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffffu; }
__device__ __forceinline__ bool finite(uint32_t magnitude) { return magnitude < 0x7f800000u; }

// What over_block() joins by.
struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  __device__ uint32_t operator()(uint32_t a, uint32_t b) const { return a > b ? a : b; }
};

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BLOCK_CUH
