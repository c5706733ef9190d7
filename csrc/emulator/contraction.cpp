// What CUTLASS computes, in plain loops, for tests without a GPU; operands that it would not take are errors
// here too.
#include "../cutlass/contraction.h"

#include "../common/error.h"
#include "../include/impl.h"

namespace bitimpl {
namespace cuda {
namespace {

int32_t set_of_both(const uint32_t* x, const uint32_t* w, int32_t words) {
  int32_t set = 0;
  for (int32_t i = 0; i < words; ++i) set += __builtin_popcount(x[i] & w[i]);
  return set;
}

int misaligned() {
  return fail(BITIMPL_INVALID_ARGUMENT, "operands that CUTLASS would not take: not whole vectors");
}

}  // namespace

const char* cutlass_version() { return "emulated"; }

int contract(const BitMatrices& task, Stream) {
  if (!is_aligned(task, task.x_stride)) return misaligned();
  for (int64_t m = 0; m < task.rows; ++m) {
    for (int64_t n = 0; n < task.columns; ++n) {
      task.sums[m * task.sums_stride + n] =
          set_of_both(task.x + m * task.x_stride, task.w + n * task.w_stride, task.words);
    }
  }
  return BITIMPL_OK;
}

int contract(const BitImages& task, Stream) {
  if (!is_aligned(task, task.pixel_stride)) return misaligned();
  const int64_t taps = int64_t{task.kernel[0]} * task.kernel[1];
  const int64_t positions = int64_t{task.out[0]} * task.out[1];
  const int64_t pixels = int64_t{task.size[0]} * task.size[1];
  for (int64_t m = 0; m < task.samples * positions; ++m) {
    for (int64_t n = 0; n < task.columns; ++n) task.sums[m * task.sums_stride + n] = 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t at[2] = {m % positions / task.out[1], m % task.out[1]};
      const int64_t of_tap[2] = {tap / task.kernel[1], tap % task.kernel[1]};
      int64_t pixel = 0;
      bool inside = true;
      for (int d = 0; d < 2; ++d) {
        const int64_t place = at[d] * task.stride[d] - task.before[d] + of_tap[d] * task.dilation[d];
        inside = inside && place >= 0 && place < task.size[d];
        pixel = pixel * task.size[d] + place;
      }
      if (!inside) continue;
      const uint32_t* x = task.x + (m / positions * pixels + pixel) * task.pixel_stride;
      for (int64_t n = 0; n < task.columns; ++n) {
        task.sums[m * task.sums_stride + n] +=
            set_of_both(x, task.w + n * task.w_stride + tap * task.words, task.words);
      }
    }
  }
  return BITIMPL_OK;
}

}  // namespace cuda
}  // namespace bitimpl
