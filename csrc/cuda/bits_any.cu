// Any product of bits: a thread a position and eight channels (a byte of signs). What the kernels made for speed
// refuse comes here.
#include "bit_kernels.h"
#include "bits.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 8;

__device__ int32_t set_of_both(const BitTask& task, const Place& position, const BitUnit& unit, int64_t row) {
  const uint32_t* w = task.w + (unit.component * task.weight.rows + row) * task.row_words + unit.first_word;
  const int64_t group = row / task.group_rows;
  int32_t set = 0;
  for (int32_t tap = 0; tap < task.windows.taps; ++tap) {
    const int64_t pixel = pixel_under(task.windows, position, tap);
    if (pixel < 0) continue;
    const uint32_t* x = task.x + pixel * task.pixel_words + group * task.tap_words + unit.first_word;
    const uint32_t* of_tap = w + tap * task.tap_words;
    for (int32_t i = 0; i < unit.words; ++i) set += count_bits(x[i] & of_tap[i]);
  }
  return set;
}

__global__ void __launch_bounds__(kThreads, 4) bits_any_kernel(BitTask task) {
  const Weight& w = task.weight;
  const int64_t bytes = ceil_div<int64_t>(w.rows, kChannels);
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (own >= positions_of(task) * bytes) return;
  const int64_t index = own / bytes;
  const int64_t first = (own - index * bytes) * kChannels;
  const Place position = position_at(task.windows, index);
  const int64_t place = place_of(task.result, position);
  uint32_t signs = 0;
  for (int64_t row = first; row < least(first + kChannels, w.rows); ++row) {
    float t = 0.0f;
    for (int32_t i = 0; i < units_of(task); ++i) {
      const BitUnit unit = bit_unit_at(task, i);
      const int32_t of_x = set_under(task, position, row / task.group_rows, unit.segment);
      const int32_t both = set_of_both(task, position, unit, row);
      const int32_t dot = dot_of_set(task, unit, both, of_x, set_of_row(task, unit, row)) +
                          border_of(task, position, unit.component, row);
      t = t + scale_at(w, unit.component, row, unit.segment) * static_cast<float>(dot);
    }
    const float y = value_of(task.result, task.x_scale[position.sample], row, t);
    if (task.result.dtype == BITIMPL_SIGNS) {
      signs |= static_cast<uint32_t>(sign_of(task.result, position.sample, row, y)) << (row - first);
    } else {
      store_value(task.result, place + row * task.result.channel_stride, y);
    }
  }
  if (task.result.dtype == BITIMPL_SIGNS) {
    static_cast<uint8_t*>(task.result.y)[(place + first) / 8] = static_cast<uint8_t>(signs);
  }
}

const char* refuses(const BitTask& task, const Device&) {
  return task.form == Form::kPlanes ? "it multiplies ternary values as bytes" : nullptr;
}
bool prefers(const BitTask&, const Device&) { return true; }
int needs(const BitTask&, const Device&) { return kNeedsRows | kNeedsCounts | kNeedsWords; }
int64_t scratch(const BitTask&, const Device&) { return 0; }

int run(const BitTask& task, const Device&, Stream stream, void*) {
  const int64_t threads = positions_of(task) * ceil_div<int64_t>(task.weight.rows, kChannels);
  const Grid grid = {{static_cast<uint32_t>(ceil_div<int64_t>(threads, kThreads))}, {kThreads}, 0, stream};
  return launch(bits_any_kernel, grid, task);
}

}  // namespace

const BitKernel kBitAny = {"any", refuses, prefers, needs, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
