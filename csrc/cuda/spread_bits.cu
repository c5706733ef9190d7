// Binary weights as two_bit ones, for kernels that multiply bytes: a thread takes 32 columns of four rows, a word of
// bits each, and writes 32 bytes. Eight neighbours write the 256 bytes of a step of a row block, and a warp reads whole
// sectors of 16 rows.
#include "bytes.cuh"
#include "kernels.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4;  // of a row group
constexpr int kColumns = 32;
constexpr int kHalves = kStep / kColumns;

// Digits of four columns from `place` on, a byte each: 2 where a row's bit is set (+1), else 0 (-1).
__device__ __forceinline__ uint32_t codes_of(const uint32_t (&bits)[kRows][1], int place) {
  uint32_t codes = 0;
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const uint32_t four = (bits[j][0] >> place & 0xf) * 0x00204081u & 0x01010101u;
    codes |= four << (2 * j + 1);
  }
  return codes;
}

__global__ void __launch_bounds__(kThreads) spread_kernel(const uint8_t* bits, Weight to) {
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int32_t half = static_cast<int32_t>(own % kHalves);
  const int64_t in_steps = own / (kHalves * kBlockGroups);
  const int64_t range = divide(in_steps, to.steps);  // a component of a row block
  const int64_t block = divide(range, to.components);
  const int32_t component = static_cast<int32_t>(range - block * to.components);
  const int64_t group = block * kBlockGroups + own / kHalves % kBlockGroups;
  if (group >= to.groups) return;
  const Step step = step_at(to, static_cast<int32_t>(in_steps - range * to.steps));
  const int32_t columns = least(step.columns - half * kColumns, kColumns);
  if (columns <= 0) return;
  const int64_t row_bytes = ceil_div<int64_t>(to.cols, 8);
  const int64_t first_row = component * to.rows + group * kRows;
  const uint8_t* from = bits + first_row * row_bytes + step.first / 8 + half * (kColumns / 8);
  uint32_t of_row[kRows][1] = {};
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    if (group * kRows + j < to.rows) load_bytes(from + j * row_bytes, ceil_div(columns, 8), of_row[j]);
  }
  uint8_t* out = const_cast<uint8_t*>(codes_at(to, group, component, step)) + half * kColumns;
  const bool whole = columns == kColumns && reinterpret_cast<uintptr_t>(out) % sizeof(uint4) == 0;
#pragma unroll
  for (int i = 0; i < kColumns; i += 16) {
    const uint4 codes = {codes_of(of_row, i), codes_of(of_row, i + 4), codes_of(of_row, i + 8),
                         codes_of(of_row, i + 12)};
    if (whole) {
      store_words(out + i, codes);
    } else {
      store_bytes(out + i, codes.x, columns - i);
      store_bytes(out + i + 4, codes.y, columns - i - 4);
      store_bytes(out + i + 8, codes.z, columns - i - 8);
      store_bytes(out + i + 12, codes.w, columns - i - 12);
    }
  }
}

}  // namespace

int spread_bits(const uint8_t* bits, const Weight& to, Stream stream) {
  const int64_t blocks = ceil_div<int64_t>(to.groups, kBlockGroups) * to.components;
  const int64_t threads = blocks * to.steps * kBlockGroups * kHalves;
  const Grid grid = {{static_cast<uint32_t>(ceil_div<int64_t>(threads, kThreads))}, {kThreads}, 0, stream};
  return launch(spread_kernel, grid, bits, to);
}

}  // namespace cuda
}  // namespace bitimpl
