// Set bits of x & w for matrices, by CUTLASS (BSD-3-Clause; its headers are not part of this repository).
#include <cutlass/gemm/device/gemm.h>
#include <cutlass/version.h>

#include "shapes.h"

namespace bitimpl {
namespace cuda {
namespace {

using Gemm = cutlass::gemm::device::Gemm<
    cutlass::uint1b_t, cutlass::layout::RowMajor, cutlass::uint1b_t, cutlass::layout::ColumnMajor, int32_t,
    cutlass::layout::RowMajor, int32_t, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, BlockShape,
    WarpShape, InstructionShape, Sums, cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, kStages,
    kVectorBits, kVectorBits, false, cutlass::arch::OpAndPopc>;

#define BITIMPL_TEXT_OF(number) #number
#define BITIMPL_TEXT(number) BITIMPL_TEXT_OF(number)

}  // namespace

const char* cutlass_version() {
  return BITIMPL_TEXT(CUTLASS_MAJOR) "." BITIMPL_TEXT(CUTLASS_MINOR) "." BITIMPL_TEXT(CUTLASS_PATCH);
}

int contract(const BitMatrices& task, Stream stream) {
  return run_cutlass<Gemm>({{task.rows, task.columns, 32 * task.words},
                            {bits_at(task.x), 32 * task.x_stride},
                            {bits_at(task.w), 32 * task.w_stride},
                            {task.sums, task.sums_stride},
                            {task.sums, task.sums_stride},
                            {}},
                           stream);
}

}  // namespace cuda
}  // namespace bitimpl
