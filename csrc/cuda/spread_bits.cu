// Binary weights as two_bit ones, for kernels that multiply bytes: a thread takes the bytes of four rows at eight
// columns.
#include "kernels.h"
#include "layout.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 8;

// Codes of the rows of group `group`, one column a byte: digit 2 for +1, 0 for -1.
__global__ void __launch_bounds__(kThreads) spread_kernel(const uint8_t* bits, Weight to) {
  const int64_t row_bytes = ceil_div<int64_t>(to.cols, kColumns);
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t group = own / row_bytes;
  if (group >= to.groups * to.components) return;
  const int64_t at = own - group * row_bytes;
  const int32_t component = static_cast<int32_t>(group / to.groups);
  const int64_t inside = group - component * to.groups;
  uint32_t of_row[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t row = inside * 4 + j;
    if (row < to.rows) of_row[j] = bits[(component * to.rows + row) * row_bytes + at];
  }
  const int64_t column = at * kColumns;
  const int32_t segment = static_cast<int32_t>(column / to.segment);
  const int32_t in_segment = static_cast<int32_t>((column - segment * to.segment) / kStep);
  const Step step = step_at(to, segment * to.segment_steps + in_segment);
  uint8_t* out = const_cast<uint8_t*>(codes_at(to, inside, component, step)) + (column - step.first);
  for (int i = 0; i < kColumns && column + i < to.cols; ++i) {
    uint32_t byte = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) byte |= (of_row[j] >> i & 1) << (2 * j + 1);
    out[i] = static_cast<uint8_t>(byte);
  }
}

}  // namespace

int spread_bits(const uint8_t* bits, const Weight& to, Stream stream) {
  const int64_t threads = to.groups * to.components * ceil_div<int64_t>(to.cols, kColumns);
  const Grid grid = {{static_cast<uint32_t>(ceil_div<int64_t>(threads, kThreads))}, {kThreads}, 0, stream};
  return launch(spread_kernel, grid, bits, to);
}

}  // namespace cuda
}  // namespace bitimpl
