// Means of magnitudes: summed in float64, in an order that sizes alone decide.
#ifndef BITIMPL_CUDA_MAGNITUDES_CUH
#define BITIMPL_CUDA_MAGNITUDES_CUH

#include "block.cuh"

namespace bitimpl {
namespace cuda {

// The bits of a float's magnitude, moved to where a double has them, are that magnitude times 2^-896: of
// normal and subnormal floats alike, and two shifts, where GPUs convert to float64 at a quarter of their rate
// or less. What is not finite comes out finite: Magnitudes::largest knows.
__device__ __forceinline__ double small_double(uint32_t magnitude) {
  return double_of_words(magnitude >> 3, magnitude << 29);
}
constexpr double kSmallDoubles = 0x1p896;  // to undo it

// Of the values that a thread, then a warp, then a team of warps has seen.
struct Magnitudes {
  double sum;  // of small doubles
  uint32_t largest;
  int32_t set;  // bits that came of them

  __device__ __forceinline__ void add(const float (&x)[4]) {
    double part[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t magnitude = magnitude_bits(x[i]);
      largest = most(largest, magnitude);
      part[i] = small_double(magnitude);
    }
    sum += (part[0] + part[1]) + (part[2] + part[3]);
  }
};

// Over the `team` warps (a power of two, side by side) that a thread's warp is of, in all of their threads.
// room: one place a warp of the block, free for use again after the next barrier. All threads of the block
// take part.
__device__ __forceinline__ Magnitudes over_team(Magnitudes mine, Magnitudes* room, int team) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    mine.sum += shuffle_xor(mine.sum, mask);
    mine.largest = most(mine.largest, shuffle_xor(mine.largest, mask));
    mine.set += shuffle_xor(mine.set, mask);
  }
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) room[warp] = mine;
  __syncthreads();
  const Magnitudes* of_team = room + warp / team * team;
  Magnitudes all = of_team[0];
  for (int i = 1; i < team; ++i) {
    all.sum += of_team[i].sum;
    all.largest = most(all.largest, of_team[i].largest);
    all.set += of_team[i].set;
  }
  return all;
}

// A sum that is NaN where a value was not finite, and the mean of `count` values from such a sum.
__device__ __forceinline__ double sum_of(const Magnitudes& all) {
  return finite(all.largest) ? all.sum * kSmallDoubles : NAN;
}
__device__ __forceinline__ float mean_of(double sum, int64_t count) {
  return static_cast<float>(sum / static_cast<double>(count));
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_MAGNITUDES_CUH
