// y of signs for the kernels of bytes, which write floats: a block a token.
#include "block.cuh"
#include "kernels.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kAtOnce = 2;

struct Floats {
  const float* y;
  int64_t row_stride;
  int64_t rows;  // of the weight
};

struct Signs {
  uint8_t* y;
  int64_t row_bytes;  // from a token to the next
  bitimpl_signs to;
};

__global__ void __launch_bounds__(kThreads) signs_kernel(Floats from, Signs signs) {
  const bitimpl_signs& s = signs.to;
  const int64_t token = blockIdx.x;
  const float* y = from.y + token * from.row_stride;
  const int lane = threadIdx.x % kWarp;
  uint32_t bad = 0;
  for (int64_t base = threadIdx.x / kWarp * kWarp; base < from.rows; base += kAtOnce * kThreads) {
    float value[kAtOnce];
    float edges[kAtOnce][4];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t row = least(base + u * kThreads + lane, from.rows - 1);
      value[u] = y[row];
      edges[u][0] = s.least[row];
      edges[u][1] = s.most[row];
      edges[u][2] = s.lower[row];
      edges[u][3] = s.upper[row];
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t row = base + u * kThreads + lane;
      const bool exists = row < from.rows;
      if (!(edges[u][0] <= value[u] && value[u] <= edges[u][1])) bad = 1;
      const uint32_t word = ballot(exists && edges[u][2] <= value[u] && value[u] <= edges[u][3]);
      if (exists && lane % 8 == 0) signs.y[token * signs.row_bytes + row / 8] = static_cast<uint8_t>(word >> lane);
    }
  }
  bad = over_block(bad, shared_memory<uint32_t>(), Larger{});
  if (threadIdx.x == 0) s.y_scale[token] = bad != 0 ? NAN : 1.0f;
}

}  // namespace

int write_signs(const Result& from, int64_t tokens, int64_t rows, const bitimpl_matrix& to, const bitimpl_signs& signs,
                Stream stream) {
  const Grid grid = {{static_cast<uint32_t>(tokens)}, {kThreads}, kThreads / kWarp * sizeof(uint32_t), stream};
  return launch(signs_kernel, grid, Floats{static_cast<const float*>(from.y), from.row_stride, rows},
                Signs{static_cast<uint8_t*>(to.data), to.row_stride / 8, signs});
}

}  // namespace cuda
}  // namespace bitimpl
