// What CUTLASS computes here: how many bits of x & w are set, for matrices and for images, as int32. Sums
// only; everything around them is bit_kernel.cu's. gemm.cu and conv.cu are CUTLASS,
// ../emulator/contraction.cpp plain loops for tests without a GPU.
#ifndef BITIMPL_CUTLASS_CONTRACTION_H
#define BITIMPL_CUTLASS_CONTRACTION_H

#include <stdint.h>

#include "../cuda/runtime.h"

namespace bitimpl {
namespace cuda {

constexpr int32_t kVectorWords = 4;         // what is loaded and stored at once: 128 bits, four sums
constexpr int32_t kTile = 128;              // rows and columns of a block's tile
constexpr int64_t kMostTiles = 65535;       // of columns: blocks of a grid in y
constexpr int64_t kOffsets = int64_t{1} << 31;  // places in images, in bits or sums, are int32 in CUTLASS

// sums[m * sums_stride + n] = set bits of x[m] & w[n], rows of `words` words.
struct BitMatrices {
  const uint32_t* x;
  int64_t x_stride;  // words, from row to row
  const uint32_t* w;
  int64_t w_stride;
  int32_t* sums;
  int64_t sums_stride;
  int32_t rows;
  int32_t columns;
  int32_t words;
};

// The same of windows: sums[position * sums_stride + n], positions of all samples one after the other; pixels
// outside the image have no set bits. Pixels of x lie without gaps but those of pixel_stride, taps of w
// without any. Heights before widths.
struct BitImages {
  const uint32_t* x;
  int64_t pixel_stride;  // words
  const uint32_t* w;
  int64_t w_stride;
  int32_t* sums;
  int64_t sums_stride;
  int32_t samples;
  int32_t columns;
  int32_t words;  // of a pixel and of a tap
  int32_t size[2];
  int32_t out[2];
  int32_t kernel[2];
  int32_t stride[2];
  int32_t dilation[2];
  int32_t before[2];
};

// BITIMPL_OK, or fail(...).
int contract(const BitMatrices& task, Stream stream);
int contract(const BitImages& task, Stream stream);

// Of the headers it was built with: "4.2.0"; "emulated" for plain loops.
const char* cutlass_version();

// What CUTLASS takes for granted of strides and places; both kinds.
template <class Task>
bool is_aligned(const Task& task, int64_t x_stride) {
  const auto whole = [](int64_t words) { return words % kVectorWords == 0; };
  const auto placed = [](const void* at) {
    return reinterpret_cast<uintptr_t>(at) % (4 * kVectorWords) == 0;
  };
  return placed(task.x) && placed(task.w) && placed(task.sums) && whole(x_stride) && whole(task.w_stride) &&
         whole(task.sums_stride) && whole(task.columns) && whole(task.words);
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUTLASS_CONTRACTION_H
