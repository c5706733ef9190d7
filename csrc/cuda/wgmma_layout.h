// The arithmetic of gemm_sm90a.cu that can be wrong without a compiler noticing: which lane holds what, where
// a byte of an activation lies in shared memory, what a descriptor says, which tile and stage come next.
// Plain functions of integers, for the host too.
#ifndef BITIMPL_CUDA_WGMMA_LAYOUT_H
#define BITIMPL_CUDA_WGMMA_LAYOUT_H

#include <stdint.h>

#include "task.h"

#ifdef __CUDACC__
#define BITIMPL_ANYWHERE __host__ __device__ __forceinline__
#else
#define BITIMPL_ANYWHERE inline
#endif

namespace bitimpl {
namespace cuda {
namespace wgmma {

// ---- shape -----------------------------------------------------------------------------------------------

constexpr int kGroupWarps = 4;            // warps of a warpgroup
constexpr int kConsumers = 2;             // warpgroups that multiply; one more copies
constexpr int kProductGroups = 64;        // row groups of one product: its 64 rows are one digit of each
constexpr int kTileGroups = kConsumers * kProductGroups;
constexpr int kProductDepth = 32;         // columns (k) of one product; two make a step
constexpr int kColumns = 64;              // activations side by side (n) where a row has one dot product
constexpr int kSegmentedColumns = 32;     // where dot products are scaled and added in registers of their own
constexpr int kStages = 8;

// Activations of a tile: an INT16 one takes two columns, its high and its low plane.
BITIMPL_ANYWHERE constexpr int tile_tokens(int columns, int planes) { return columns / planes; }

// ---- fragments (PTX manual, "Register fragments for wgmma.mma_async.m64nNk32") ---------------------------

// Row group, counted from the product's first, of rows 0 (upper = 0) and 8 (upper = 1) further of a lane.
BITIMPL_ANYWHERE int fragment_group(int warp, int lane, int upper) {
  return 16 * (warp % kGroupWarps) + lane / 4 + 8 * upper;
}

// The word that operand register 2 * word + upper of product `half` of a step is made of, among the four that
// lane % 4 loads of a row group's step: columns 16 * (lane % 4) + 4 * that ...
BITIMPL_ANYWHERE int fragment_word(int half, int word) { return 2 * half + word; }

// Accumulator register: of column eighth * 8 + 2 * (lane % 4) + odd, row group fragment_group(.., upper).
BITIMPL_ANYWHERE int fragment_register(int eighth, int upper, int odd) {
  return 4 * eighth + 2 * upper + odd;
}
BITIMPL_ANYWHERE int fragment_column(int lane, int eighth, int odd) {
  return 8 * eighth + 2 * (lane % 4) + odd;
}

// ---- activations -----------------------------------------------------------------------------------------

// The product takes k in order: lane t's registers are k = 4t .. and 16 + 4t ... But a lane that loads 16
// bytes of codes at once has columns 16t .. 16t + 15. So the activations are put where they are wanted: of
// the 4 x 4 words of a step, transposed. Position of column `column` (0 .. 63) in its step.
BITIMPL_ANYWHERE int position_of(int column) {
  const int word = column / 4;
  return (word % 4 * 4 + word / 4) * 4 + column % 4;
}

// 64-byte swizzle: bits 7, 8 of the address into bits 4, 5, so that the same 16 bytes of eight rows lie in
// different banks.
BITIMPL_ANYWHERE int swizzle(int offset) { return offset ^ ((offset >> 7 & 3) << 4); }

// Offset of a byte in a tile's step: rows are activations (or planes of them), 64 bytes each.
BITIMPL_ANYWHERE int place_in_step(int row, int column) { return swizzle(row * kStep + position_of(column)); }

// Offset of a byte in a plane of activations that lie tile by tile, in each step by step: what one copy
// brings is contiguous. `tile`: activations of a tile, a multiple of 8.
BITIMPL_ANYWHERE int64_t place_of(int tile, int32_t steps, int64_t token, int32_t step, int column) {
  return (token / tile * steps + step) * (int64_t{kStep} * tile) +
         place_in_step(static_cast<int>(token % tile), column);
}

// Matrix descriptor (PTX manual, "Shared memory matrix layout"): rows along k, 64-byte swizzle, eight rows
// every 512 bytes. `address`: in shared memory, of a multiple of 512; `half`: which product of the step.
BITIMPL_ANYWHERE uint64_t descriptor(uint32_t address, int half) {
  constexpr uint64_t kSwizzle64 = uint64_t{2} << 62;
  constexpr uint64_t kEightRows = uint64_t{8 * kStep >> 4} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // the leading offset: none within a swizzle
  address += static_cast<uint32_t>(half * kProductDepth);
  return kSwizzle64 | kEightRows | kUnused | (address >> 4 & 0x3fff);
}

// ---- schedule --------------------------------------------------------------------------------------------

// Tiles run through bands of the weight, in a band along the activations: blocks at work at the same time
// share both through the second-level cache.
constexpr int64_t kBand = 8;

struct Tile {
  int64_t weight;
  int64_t tokens;
};

BITIMPL_ANYWHERE Tile tile_at(int64_t index, int64_t weight_tiles, int64_t token_tiles) {
  const int64_t band = index / (kBand * token_tiles);
  const int64_t inside = index - band * kBand * token_tiles;
  const int64_t left = weight_tiles - band * kBand;
  const int64_t height = left < kBand ? left : kBand;
  return {band * kBand + inside % height, inside / height};
}

// Stage of the n-th copy and the parity of the barrier's phase that it fills.
BITIMPL_ANYWHERE uint32_t stage_of(uint32_t copy) { return copy % kStages; }
BITIMPL_ANYWHERE uint32_t parity_of(uint32_t copy) { return copy / kStages & 1; }

}  // namespace wgmma
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_WGMMA_LAYOUT_H
