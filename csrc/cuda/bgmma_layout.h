// The arithmetic of binary_gemm_sm90a.cu that can be wrong without a compiler noticing: shapes of tiles and
// stages, descriptors, which stage comes next. Plain functions of integers. Fragments and the order of tiles
// are those of wgmma_layout.h.
#ifndef BITIMPL_CUDA_BGMMA_LAYOUT_H
#define BITIMPL_CUDA_BGMMA_LAYOUT_H

#include "wgmma_layout.h"

namespace bitimpl {
namespace cuda {
namespace bgmma {

using wgmma::kGroupWarps;

constexpr int kConsumers = 2;                      // warpgroups that multiply; one more prepares
constexpr int kProductTokens = 64;                 // rows of one product
constexpr int kTileTokens = kConsumers * kProductTokens;
constexpr int kColumns = 256;                      // rows of the weight in a tile where a row has one sum
constexpr int kUnitColumns = 128;  // where sums are scaled and added in registers of their own
constexpr int kLineWords = 32;                     // of a row in a stage: 1024 bits, the width of the swizzle
constexpr int kLineBytes = 4 * kLineWords;
constexpr int kProductBytes = 32;                  // of a line in one product: 256 bits
constexpr int kLineProducts = kLineBytes / kProductBytes;
constexpr uint32_t kEightLines = 8 * kLineBytes;   // what the swizzle's pattern repeats after
constexpr int kConstantBuffers = 2;
constexpr int kPutters = kGroupWarps - 1;          // warps that put constants

// As many as fit beside the constants: 192 KiB.
BITIMPL_ANYWHERE constexpr int stages_of(int columns) { return columns == kColumns ? 4 : 6; }
BITIMPL_ANYWHERE constexpr uint32_t token_bytes() { return kTileTokens * kLineBytes; }
BITIMPL_ANYWHERE constexpr uint32_t stage_bytes(int columns) {
  return token_bytes() + static_cast<uint32_t>(columns * kLineBytes);
}

// Matrix descriptor (PTX manual, "Shared memory matrix layout"): rows along k, 128-byte swizzle, eight rows
// every 1024 bytes. `address`: in shared memory, of a multiple of 1024 (a line's first product).
BITIMPL_ANYWHERE uint64_t descriptor(uint32_t address, int product) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kStride = uint64_t{kEightLines >> 4} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // the leading offset: none within a swizzle
  address += static_cast<uint32_t>(product * kProductBytes);
  return kSwizzle128 | kStride | kUnused | (address >> 4 & 0x3fff);
}

// One of a ring of COUNT things that are filled and emptied in turn, and the parity of the phase that its
// n-th filling completes.
template <int COUNT>
struct Turn {
  uint32_t index = 0;
  uint32_t parity = 0;

  BITIMPL_ANYWHERE void next() {
    if (++index == COUNT) {
      index = 0;
      parity ^= 1;
    }
  }
};

}  // namespace bgmma
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BGMMA_LAYOUT_H
