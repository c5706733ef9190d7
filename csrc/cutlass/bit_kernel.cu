// Products of bits by CUTLASS: words laid out as it wants them, its sums of set bits, and the way from them
// to y.
//
// CUTLASS multiplies operands of whole 128 bits and writes four sums at once. Taps of fewer words, and groups
// of rows that are no multiple of four, are laid out anew, filled up with zeros: so any number of channels
// will do. Scale groups, components and groups of channels are contractions of their own, one after the
// other. Positions of y go in portions whose sums stay in the second cache until they are read again.
#include "../cuda/bit_kernels.h"
#include "../cuda/bits.cuh"
#include "../cuda/workspace.h"
#include "contraction.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 8;  // of a thread: a byte of signs
#ifdef BITIMPL_EMULATOR
constexpr int64_t kPortion = 1 << 10;  // so that tests see several
#else
constexpr int64_t kPortion = 1 << 23;  // sums at a time, 32 MiB
#endif

// Rows of words laid out anew: `parts` of a row become wider, `rows_from` rows of a block become more.
struct Filling {
  const uint32_t* from;
  uint32_t* to;
  int64_t blocks;
  int64_t rows_from;
  int64_t rows_to;
  int64_t row_words;  // of from, which may be more than its parts
  int32_t parts;
  int32_t words_from;  // of a part
  int32_t words_to;
};

// What a call becomes.
struct Plan {
  int32_t words;       // of a tap
  int64_t group_rows;  // with those that fill up
  int64_t columns;     // of all groups: sums of a position
  int64_t portion;     // samples at a time
  bool fills_x;
  bool fills_w;
  bool is_matrix;      // a position of y sees the pixel of the same index
};

// Memory of a call, and where it is at.
struct Portion {
  const int32_t* sums;  // [positions, columns]
  const int32_t* sets;  // set bits of x [positions, groups, segments]; ~set where the window leaves the image
  float* t;             // [positions, columns], over units; null: a single one
  int64_t columns;
  int64_t padded_rows;  // of a group
  int64_t first_sample;
  int32_t positions;    // of all samples of the portion
  int32_t unit;
};

__global__ void __launch_bounds__(kThreads) cutlass_fill_kernel(Filling f) {
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row_words = int64_t{f.parts} * f.words_to;
  if (own >= f.blocks * f.rows_to * row_words) return;
  const int64_t row = own / row_words;
  const int32_t inside = static_cast<int32_t>(own - row * row_words);
  const int32_t part = inside / f.words_to;
  const int32_t word = inside - part * f.words_to;
  const int64_t block = row / f.rows_to;
  const int64_t at = row - block * f.rows_to;
  const bool is_there = word < f.words_from && at < f.rows_from;
  f.to[own] = is_there ? f.from[(block * f.rows_from + at) * f.row_words + part * f.words_from + word] : 0;
}

// Position `index` of a portion, in 32 bits: there are fewer than 2^31.
__device__ __forceinline__ Place place_in(const Windows& v, const Portion& p, int32_t index) {
  const int32_t positions = static_cast<int32_t>(v.positions);
  const int32_t sample = index / positions;
  int32_t inside = index - sample * positions;
  Place place;
  place.sample = p.first_sample + sample;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int32_t before = inside / v.out[d];
    place.at[d] = inside - before * v.out[d];
    inside = before;
  }
  return place;
}

// A thread a position, group and segment.
__global__ void __launch_bounds__(kThreads) cutlass_sets_kernel(BitTask task, Portion p, int32_t* sets) {
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t of_position = task.groups * task.weight.segments;
  if (own >= p.positions * of_position) return;
  const int64_t index = own / of_position;
  const int64_t rest = own - index * of_position;
  const int64_t group = rest / task.weight.segments;
  const Place position = place_in(task.windows, p, static_cast<int32_t>(index));
  const int32_t segment = static_cast<int32_t>(rest - group * task.weight.segments);
  const int32_t set = set_under(task, position, group, segment);
  bool leaves = false;
  for (int32_t tap = 0; tap < task.windows.taps; ++tap) {
    leaves |= pixel_under(task.windows, position, tap) < 0;
  }
  sets[own] = leaves ? ~set : set;
}

// A thread a position and eight channels; neighbouring threads have neighbouring positions. Of the last unit
// comes y.
__global__ void __launch_bounds__(kThreads) cutlass_result_kernel(BitTask task, Portion p) {
  const Weight& w = task.weight;
  const int64_t bytes = ceil_div<int64_t>(w.rows, kChannels);
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (own >= p.positions * bytes) return;
  const int64_t byte = own / p.positions;
  const int32_t index = static_cast<int32_t>(own - byte * p.positions);
  const int64_t first = byte * kChannels;
  const bool ends = p.unit + 1 == units_of(task);
  const BitUnit unit = bit_unit_at(task, p.unit);
  const Place position = place_in(task.windows, p, index);
  const int64_t place = place_of(task.result, position);
  uint32_t signs = 0;
  for (int64_t row = first; row < least(first + kChannels, w.rows); ++row) {
    const int64_t group = task.groups == 1 ? 0 : row / task.group_rows;
    const int64_t column = row + group * (p.padded_rows - task.group_rows);
    const int32_t set = p.sets[(index * task.groups + group) * w.segments + unit.segment];
    const int64_t at = index * p.columns + column;
    int32_t dot = dot_of_set(task, unit, p.sums[at], set < 0 ? ~set : set, set_of_row(task, unit, row));
    if (set < 0) dot += border_of(task, position, unit.component, row);
    float t = p.unit == 0 ? 0.0f : p.t[at];
    t = t + scale_at(w, unit.component, row, unit.segment) * static_cast<float>(dot);
    if (!ends) {
      p.t[at] = t;
      continue;
    }
    const float y = value_of(task.result, task.x_scale[position.sample], row, t);
    if (task.result.dtype == BITIMPL_SIGNS) {
      signs |= static_cast<uint32_t>(sign_of(task.result, position.sample, row, y)) << (row - first);
    } else {
      store_value(task.result, place + row * task.result.channel_stride, y);
    }
  }
  if (ends && task.result.dtype == BITIMPL_SIGNS) {
    static_cast<uint8_t*>(task.result.y)[(place + first) / 8] = static_cast<uint8_t>(signs);
  }
}

Grid grid_of(int64_t threads, Stream stream) {
  return {{static_cast<uint32_t>(ceil_div<int64_t>(threads, kThreads))}, {kThreads}, 0, stream};
}

int fill(const Filling& f, Stream stream) {
  return launch(cutlass_fill_kernel, grid_of(f.blocks * f.rows_to * f.parts * f.words_to, stream), f);
}

Plan plan_of(const BitTask& task) {
  const Windows& v = task.windows;
  Plan plan = {};
  plan.words = round_up(task.tap_words, kVectorWords);
  plan.group_rows = round_up<int64_t>(task.group_rows, kVectorWords);
  plan.columns = task.groups * plan.group_rows;
  plan.fills_x = plan.words != task.tap_words;
  plan.fills_w = plan.fills_x || plan.group_rows != task.group_rows;
  plan.is_matrix = v.taps == 1 && !v.pads && v.stride[0] == 1 && v.stride[1] == 1 && v.stride[2] == 1;
  const int64_t sample_sums = v.positions * plan.columns;
  const int64_t sample_bits = 32 * v.pixels * task.groups * plan.words;
  plan.portion = most<int64_t>(1, kPortion / most<int64_t>(1, sample_sums));
  if (!plan.is_matrix) plan.portion = least(plan.portion, most<int64_t>(1, (kOffsets - 1) / sample_bits));
  plan.portion = least(plan.portion, task.samples);
  return plan;
}

// Of a call; takes of `memory` what is needed where that only counts, too.
struct Memory {
  uint32_t* x;
  uint32_t* w;
  int32_t* sums;
  int32_t* sets;
  float* t;

  Memory(const BitTask& task, const Plan& plan, Divider* memory) : x(), w(), sums(), sets(), t() {
    const Weight& weight = task.weight;
    const int64_t positions = plan.portion * task.windows.positions;
    const int64_t pixels = task.samples * task.windows.pixels;
    if (plan.fills_x) x = memory->take<uint32_t>(pixels * task.groups * plan.words);
    if (plan.fills_w) {
      w = memory->take<uint32_t>(weight.components * plan.columns * task.windows.taps * plan.words);
    }
    sums = memory->take<int32_t>(positions * plan.columns);
    if (!plan.is_matrix) sets = memory->take<int32_t>(positions * task.groups * weight.segments);
    if (units_of(task) > 1) t = memory->take<float>(positions * plan.columns);
  }
};

// Sums of a unit and a group for the samples of a portion.
int contract_group(const BitTask& task, const Plan& plan, const Portion& p, const BitUnit& unit,
                   int64_t group, int32_t* sums, Stream stream) {
  const Windows& v = task.windows;
  const int64_t pixel_words = plan.fills_x ? task.groups * plan.words : task.pixel_words;
  const int64_t row_words = plan.fills_w ? int64_t{v.taps} * plan.words : task.row_words;
  const int64_t rows = plan.fills_w ? plan.columns : task.weight.rows;  // of a component
  const uint32_t* x = task.x + p.first_sample * v.pixels * pixel_words + group * plan.words + unit.first_word;
  const int64_t row = unit.component * rows + group * plan.group_rows;
  const uint32_t* w = task.w + row * row_words + unit.first_word;
  const int32_t columns = static_cast<int32_t>(plan.group_rows);
  sums += group * plan.group_rows;
  if (plan.is_matrix) {
    const int32_t words = round_up(unit.words, kVectorWords);
    const BitMatrices matrices = {x,            pixel_words, w,       row_words, sums,
                                  plan.columns, p.positions, columns, words};
    return contract(matrices, stream);
  }
  BitImages images = {};
  images.x = x;
  images.pixel_stride = pixel_words;
  images.w = w;
  images.w_stride = row_words;
  images.sums = sums;
  images.sums_stride = plan.columns;
  images.samples = static_cast<int32_t>(p.positions / v.positions);
  images.columns = columns;
  images.words = plan.words;
  for (int d = 0; d < 2; ++d) {
    images.size[d] = v.size[d + 1];
    images.out[d] = v.out[d + 1];
    images.kernel[d] = v.kernel[d + 1];
    images.stride[d] = v.stride[d + 1];
    images.dilation[d] = v.dilation[d + 1];
    images.before[d] = v.before[d + 1];
  }
  return contract(images, stream);
}

const char* refuses(const BitTask& task, const Device&) {
  const Windows& v = task.windows;
  if (task.form == Form::kPlanes) return "it multiplies signs, not ternary values";
  const Plan plan = plan_of(task);
  if (plan.group_rows > kMostTiles * kTile) return "it takes up to 8 million output channels";
  const int64_t sample_sums = v.positions * plan.columns;
  if (sample_sums >= kOffsets) return "a sample of the output has 2^31 elements or more";
  if (plan.is_matrix) return nullptr;
  if (v.size[0] != 1 || v.out[0] != 1 || v.kernel[0] != 1 || v.before[0] != 0) {
    return "it convolves images and signals, not volumes";
  }
  // Strides and paddings are added up as int32 where a window lies.
  const int64_t pixel = 32 * task.groups * plan.words;
  if (v.pixels >= kOffsets / pixel) return "a sample has 2^31 bits or more";
  for (int d = 1; d < 3; ++d) {
    const int64_t of_taps = int64_t{v.kernel[d]} * v.dilation[d];
    const int64_t reach = v.before[d] + int64_t{v.out[d]} * v.stride[d] + of_taps;
    const int64_t step = d == 2 ? pixel : pixel * v.size[2];
    if (reach >= kOffsets / step) return "windows of a sample reach over 2^31 bits or more";
  }
  const int64_t weight_bits = 32 * plan.group_rows * task.row_words;
  const int64_t filled_bits = 32 * plan.group_rows * v.taps * plan.words;
  if (most(weight_bits, filled_bits) >= kOffsets) return "a group of the weight has 2^31 bits or more";
  return nullptr;
}

// By name alone: kernels that end in y themselves spare a way to memory and back.
bool prefers(const BitTask&, const Device&) { return false; }

int needs(const BitTask&, const Device&) { return kNeedsRows | kNeedsCounts | kNeedsWords; }

int64_t scratch(const BitTask& task, const Device&) {
  Divider sizes = {nullptr};
  Memory(task, plan_of(task), &sizes);
  return sizes.used;
}

int run(const BitTask& given, const Device&, Stream stream, void* scratch) {
  BitTask task = given;
  const Weight& weight = task.weight;
  const Windows& v = task.windows;
  const Plan plan = plan_of(task);
  Divider divider = {static_cast<char*>(scratch)};
  const Memory memory(task, plan, &divider);
  int status = BITIMPL_OK;
  if (plan.fills_x) {
    const int64_t pixels = task.samples * v.pixels;
    const int32_t groups = static_cast<int32_t>(task.groups);
    const Filling f = {task.x,           memory.x, 1,              pixels,    pixels,
                       task.pixel_words, groups,   task.tap_words, plan.words};
    status = fill(f, stream);
    task.x = memory.x;
  }
  if (status == BITIMPL_OK && plan.fills_w) {
    const int64_t blocks = weight.components * task.groups;
    const Filling f = {task.w,         memory.w, blocks,         task.group_rows, plan.group_rows,
                       task.row_words, v.taps,   task.tap_words, plan.words};
    status = fill(f, stream);
    task.w = memory.w;
  }
  const int64_t counts = v.pixels * task.groups * weight.segments;  // of a sample
  Portion p = {memory.sums, memory.sets, memory.t, plan.columns, plan.group_rows, 0, 0, 0};
  for (; status == BITIMPL_OK && p.first_sample < task.samples; p.first_sample += plan.portion) {
    p.positions = static_cast<int32_t>(least(plan.portion, task.samples - p.first_sample) * v.positions);
    if (plan.is_matrix) {
      p.sets = task.x_counts + p.first_sample * counts;
    } else {
      const Grid grid = grid_of(p.positions * task.groups * weight.segments, stream);
      status = launch(cutlass_sets_kernel, grid, task, p, memory.sets);
    }
    for (p.unit = 0; status == BITIMPL_OK && p.unit < units_of(task); ++p.unit) {
      const BitUnit unit = bit_unit_at(task, p.unit);
      for (int64_t group = 0; status == BITIMPL_OK && group < task.groups; ++group) {
        status = contract_group(task, plan, p, unit, group, memory.sums, stream);
      }
      const Grid grid = grid_of(p.positions * ceil_div<int64_t>(weight.rows, kChannels), stream);
      if (status == BITIMPL_OK) status = launch(cutlass_result_kernel, grid, task, p);
    }
  }
  return status;
}

}  // namespace

const BitKernel kBitCutlass = {"cutlass", refuses, prefers, needs, scratch, run, true};

}  // namespace cuda
}  // namespace bitimpl
