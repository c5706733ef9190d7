// What every kernel is written in: CUDA, compiled by nvcc for a GPU or by the emulator for the host.
// Kernels reach shared memory through shared_memory() and are started by launch(), nothing else.
#ifndef BITIMPL_CUDA_DEVICE_CUH
#define BITIMPL_CUDA_DEVICE_CUH

#include <stddef.h>
#include <stdint.h>

#ifdef BITIMPL_EMULATOR
#include "../emulator/emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include "../common/error.h"
#include "runtime.h"

namespace bitimpl {
namespace cuda {

constexpr int kWarp = 32;

struct Grid {
  dim3 blocks;
  dim3 threads;         // a multiple of 32
  size_t shared_bytes;  // at most Device::shared_bytes
  Stream stream;
};

// The block's shared memory, as many bytes as the launch gave it.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#ifdef BITIMPL_EMULATOR
  return static_cast<T*>(emulator::shared());
#else
  extern __shared__ uint4 bitimpl_shared[];
  return reinterpret_cast<T*>(bitimpl_shared);
#endif
}

// Starts the kernel on the current device. BITIMPL_OK, or fail(...) with what the launch was refused for.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), const Grid& grid, Arguments... arguments) {
#ifdef BITIMPL_EMULATOR
  const char* fault =
      emulator::run(grid.blocks, grid.threads, grid.shared_bytes, [=] { kernel(arguments...); });
  return fault == nullptr ? BITIMPL_OK : fail(BITIMPL_INVALID_ARGUMENT, "emulated kernel: %s", fault);
#else
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (grid.shared_bytes > kWithoutAsking) {
    // The limit is the function's, not the launch's: all there is, so that no thread lowers another's.
    int device = 0;
    int most_bytes = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes);
    const int status = check_launch();
    if (status != BITIMPL_OK) return status;
  }
  kernel<<<grid.blocks, grid.threads, grid.shared_bytes, static_cast<cudaStream_t>(grid.stream)>>>(
      arguments...);
  return check_launch();
#endif
}

template <class T>
__host__ __device__ __forceinline__ T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
__host__ __device__ __forceinline__ T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

template <class T>
__host__ __device__ __forceinline__ T least(T a, T b) {
  return a < b ? a : b;
}

template <class T>
__host__ __device__ __forceinline__ T most(T a, T b) {
  return a > b ? a : b;
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_DEVICE_CUH
