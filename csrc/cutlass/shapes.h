// What both uses of CUTLASS share: sizes of tiles, the instruction, the way to start one.
#ifndef BITIMPL_CUTLASS_SHAPES_H
#define BITIMPL_CUTLASS_SHAPES_H

#include <cuda_runtime.h>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/gemm/gemm.h>

#include "../common/error.h"
#include "contraction.h"

namespace bitimpl {
namespace cuda {

using BlockShape = cutlass::gemm::GemmShape<kTile, kTile, 512>;
using WarpShape = cutlass::gemm::GemmShape<64, 64, 512>;
using InstructionShape = cutlass::gemm::GemmShape<16, 8, 256>;
constexpr int kStages = 4;  // of 16 KiB
constexpr int kVectorBits = 32 * kVectorWords;

// Sums go out as they are.
using Sums = cutlass::epilogue::thread::LinearCombination<int32_t, kVectorWords, int32_t, int32_t,
                                                          cutlass::epilogue::thread::ScaleType::Nothing>;

inline cutlass::uint1b_t* bits_at(const uint32_t* words) {
  return reinterpret_cast<cutlass::uint1b_t*>(const_cast<uint32_t*>(words));
}

// BITIMPL_OK, or fail(...) with what CUTLASS or the launch refuses.
template <class Operation>
int run_cutlass(const typename Operation::Arguments& arguments, Stream stream) {
  cutlass::Status status = Operation::can_implement(arguments);
  Operation operation;
  if (status == cutlass::Status::kSuccess) {
    status = operation(arguments, nullptr, static_cast<cudaStream_t>(stream));
  }
  if (status == cutlass::Status::kSuccess) return BITIMPL_OK;
  return fail(BITIMPL_UNSUPPORTED, "CUTLASS refuses the call: %s", cutlassGetStatusString(status));
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUTLASS_SHAPES_H
