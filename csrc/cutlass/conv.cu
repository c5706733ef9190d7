// Set bits of x & w in windows of images, by CUTLASS (BSD-3-Clause; its headers are not part of this
// repository). The second needs what the first includes.
#include <cutlass/conv/kernel/default_conv2d_fprop.h>

#include <cutlass/conv/device/implicit_gemm_convolution.h>

#include "shapes.h"

namespace bitimpl {
namespace cuda {
namespace {

// The analytic iterators take kernels of every size; the others, up to 32 x 32, do with less arithmetic.
template <cutlass::conv::IteratorAlgorithm ALGORITHM>
using ConvKernel = typename cutlass::conv::kernel::DefaultConv2dFprop<
    cutlass::uint1b_t, cutlass::layout::TensorNHWC, cutlass::uint1b_t, cutlass::layout::TensorNHWC, int32_t,
    cutlass::layout::TensorNHWC, int32_t, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, BlockShape,
    WarpShape, InstructionShape, Sums, cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, kStages,
    cutlass::arch::OpAndPopc, ALGORITHM, cutlass::conv::StrideSupport::kStrided, kVectorBits,
    kVectorBits>::Kernel;
template <cutlass::conv::IteratorAlgorithm ALGORITHM>
using Conv = cutlass::conv::device::ImplicitGemmConvolution<ConvKernel<ALGORITHM>>;

using ForSmallKernels = Conv<cutlass::conv::IteratorAlgorithm::kOptimized>;
using ForLargeKernels = Conv<cutlass::conv::IteratorAlgorithm::kAnalytic>;
constexpr int32_t kSmall = 32;

cutlass::layout::TensorNHWC packed(int64_t pixel, int64_t width, int64_t height) {
  const int64_t row = width * pixel;
  return {static_cast<int>(pixel), static_cast<int>(row), static_cast<int>(height * row)};
}

// Both kinds of iterators take the same.
template <class Operation>
typename Operation::Arguments arguments_of(const BitImages& task) {
  // By name of what is meant: constructors of single numbers have them in different orders.
  const cutlass::Tensor4DCoord of_x(task.samples, task.size[0], task.size[1], 32 * task.words);
  const cutlass::Tensor4DCoord of_w(task.columns, task.kernel[0], task.kernel[1], 32 * task.words);
  const cutlass::Tensor4DCoord of_y(task.samples, task.out[0], task.out[1], task.columns);
  const cutlass::Tensor4DCoord padding(task.before[0], 0, task.before[1], 0);
  const cutlass::conv::Conv2dProblemSize sizes(of_x, of_w, padding, {task.stride[0], task.stride[1]},
                                               {task.dilation[0], task.dilation[1]}, of_y,
                                               cutlass::conv::Mode::kCrossCorrelation);
  // Rows of w may be further apart than their taps reach.
  const int64_t tap = 32 * int64_t{task.words};
  const cutlass::layout::TensorNHWC filter(static_cast<int>(tap), static_cast<int>(task.kernel[1] * tap),
                                           static_cast<int>(32 * task.w_stride));
  const cutlass::layout::TensorNHWC image = packed(32 * task.pixel_stride, task.size[1], task.size[0]);
  const cutlass::layout::TensorNHWC result = packed(task.sums_stride, task.out[1], task.out[0]);
  const cutlass::TensorRef<int32_t, cutlass::layout::TensorNHWC> sums(task.sums, result);
  return {sizes, {bits_at(task.x), image}, {bits_at(task.w), filter}, sums, sums, {}};
}

bool is_small(const BitImages& task) { return task.kernel[0] <= kSmall && task.kernel[1] <= kSmall; }

}  // namespace

int contract(const BitImages& task, Stream stream) {
  if (is_small(task)) return run_cutlass<ForSmallKernels>(arguments_of<ForSmallKernels>(task), stream);
  return run_cutlass<ForLargeKernels>(arguments_of<ForLargeKernels>(task), stream);
}

}  // namespace cuda
}  // namespace bitimpl
