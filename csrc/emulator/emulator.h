// The language of CUDA kernels for an ordinary C++ compiler: a grid's blocks run one after another in a
// shuffled order, the threads of a block as fibers that a shuffled schedule runs from one meeting
// point (barrier, exchange within a warp) to the next. What a kernel may not rely on shows: shared memory
// begins as noise, copies in flight land as late as they may, a thread that forgets a barrier meets
// neighbours that have not been there yet.
//
// Not emulated: blocks that wait for each other, warps of which only some lanes take part in an exchange.
#ifndef BITIMPL_EMULATOR_EMULATOR_H
#define BITIMPL_EMULATOR_EMULATOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 { uint32_t x, y; };
struct uint3 { uint32_t x, y, z; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

struct dim3 {
  uint32_t x, y, z;
  dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace bitimpl {
namespace emulator {

constexpr int kWarp = 32;

// Where the running thread is.
struct Place {
  uint3 thread;
  uint3 block;
  dim3 threads;
  dim3 blocks;
};
extern const Place* here;

// Runs `body` for every thread of the grid. Null, or what is wrong with the launch or the kernel: a
// static text that the next run replaces. One grid runs at a time.
const char* run(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& body);

// The seed of the schedule and of the noise; every run draws on from there.
void shuffle(uint64_t seed);

// The block's shared memory.
void* shared();

// Waits for the block's threads.
void barrier();

// Waits for the warp's lanes, which must all come to the same `together`; then it is called once, with
// what each lane has brought.
using Together = void (*)(void* const* of_lane);
void meet(Together together, void* mine);

// What a warp says that finds what it waits for undone and will look again: others are to go first.
void give_way();

// Whether what may happen now or later happens later: by the seed.
bool chance();

// A copy of 16 bytes, of which `valid` come from `from` and the rest are zero, that happens when it is
// waited for.
void copy_later(void* to, const void* from, int valid);
void end_group();
void wait_for_groups(int but);  // all but the last so many

}  // namespace emulator
}  // namespace bitimpl

#define threadIdx (::bitimpl::emulator::here->thread)
#define blockIdx (::bitimpl::emulator::here->block)
#define blockDim (::bitimpl::emulator::here->threads)
#define gridDim (::bitimpl::emulator::here->blocks)

inline void __syncthreads() { ::bitimpl::emulator::barrier(); }
inline void __syncwarp() { ::bitimpl::emulator::meet([](void* const*) {}, nullptr); }

#endif  // BITIMPL_EMULATOR_EMULATOR_H
