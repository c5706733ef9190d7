// bitimpl_cuda_quantize_int8: activations as integers for their own sake, rows contiguous; a block a row.
#include "../common/checks.h"
#include "quantize.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) quantize_int8_kernel(Source source, int64_t cols, int8_t* q, float* scale) {
  constexpr int kAtOnce = 4;
  const int64_t row = blockIdx.x;
  const bool wide = wide_loads(source);
  const uint32_t share = largest_of_share<kThreads>(source, cols, row, wide);
  const uint32_t largest = over_block(share, shared_memory<uint32_t>(), Larger{});
  const Rule rule = rule_of_largest(largest, BITIMPL_ACTIVATION_INT8);
  if (threadIdx.x == 0) scale[row] = rule.scale;
  int8_t* to = q + row * cols;
  const bool words = reinterpret_cast<uintptr_t>(to) % 4 == 0;
  for (int64_t first = 4 * threadIdx.x; first < cols; first += 4 * kAtOnce * kThreads) {
    RawFour raw[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t column = first + 4 * u * kThreads;
      raw[u] = load_four(source, row * source.row_stride + column, cols - column, wide);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t column = first + 4 * u * kThreads;
      const Four four = floats_of(raw[u], source.dtype);
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        word |= static_cast<uint32_t>(integers_of(four.x[j], BITIMPL_ACTIVATION_INT8, rule).high & 0xff) << 8 * j;
      }
      if (words && column + 4 <= cols) {
        *reinterpret_cast<uint32_t*>(to + column) = word;
        continue;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (column + j < cols) to[column + j] = static_cast<int8_t>(word >> 8 * j);
      }
    }
  }
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" int bitimpl_cuda_quantize_int8(const bitimpl_matrix* x, int8_t* q, float* scale, int32_t device,
                                          void* stream) {
  clear_error();
  const int status = check_matrix(x, "x");
  if (status != BITIMPL_OK) return status;
  const Device* found = device_at(device);
  if (found == nullptr) return last_status();
  if (x->rows == 0) return BITIMPL_OK;
  if (q == nullptr || scale == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "%s is null: pass %lld bytes", q == nullptr ? "q" : "scale",
                q == nullptr ? show(x->rows * x->cols) : show(4 * x->rows));
  }
  if (!aligned(scale, sizeof(float))) {
    return fail(BITIMPL_INVALID_ARGUMENT, "scale lies at %p: align it to its 4 bytes", static_cast<void*>(scale));
  }
  const DeviceGuard current(device);
  const Source source = {x->data, x->row_stride, x->dtype, BITIMPL_ACTIVATION_INT8};
  const Grid grid = {{static_cast<uint32_t>(x->rows)}, {kThreads}, kThreads / kWarp * sizeof(uint32_t), stream};
  return launch(quantize_int8_kernel, grid, source, x->cols, q, scale);
}
