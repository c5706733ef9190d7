// Products of bits on the host side: sizes, the choice of a kernel, the division of the workspace.
#include "bit_kernels.h"
#include "choice.h"
#include "weight.h"
#include "workspace.h"

namespace bitimpl {
namespace cuda {
namespace {

// In the order of preference.
const BitKernel* const kKernels[] = {
#ifdef BITIMPL_HAS_SM90A
    &kBgmma,
#endif
    &kPopcount,
#ifdef BITIMPL_HAS_CUTLASS
    &kBitCutlass,
#endif
    &kBitMma, &kBitAny};

int32_t words_of(int64_t bits, int64_t multiple) {
  return static_cast<int32_t>((bits + multiple - 1) / multiple * (multiple / 32));
}

// Whether the weight's own bytes are words as the kernels want them.
bool lies_in_words(const BitTask& task) {
  const Weight& w = task.weight;
  if (task.form != Form::kSigns || !aligned(w.codes, 4 * task.chunk_words)) return false;
  if (task.windows.taps > 1 || task.groups > 1) return task.group_channels == 32 * int64_t{task.tap_words};
  return w.cols % (32 * task.chunk_words) == 0 && (w.segments == 1 || w.segment % (32 * task.chunk_words) == 0);
}

bool corrects(const BitTask& task) { return task.windows.pads && task.windows.padding_value != -1; }

// Gives the task its memory; returns the scratch, which the preparation has before the kernel.
void* divide(BitTask* task, const BitKernel& kernel, const Device& device, Divider* memory) {
  const int needs = kernel.needs(*task, device);
  const Weight& w = task->weight;
  const int64_t pixels = task->samples * task->windows.pixels;
  if (needs & kNeedsRows) {
    task->x = memory->take<uint32_t>(pixels * task->pixel_words);
    task->x_counts = memory->take<int32_t>(pixels * task->groups * w.segments);
    task->x_scale = memory->take<float>(task->samples);
  }
  if (needs & kNeedsWords) {
    if (lies_in_words(*task)) {
      task->w = reinterpret_cast<const uint32_t*>(w.codes);
      task->row_words = task->windows.taps > 1 || task->groups > 1 ? int64_t{task->windows.taps} * task->tap_words
                                                                   : w.cols / 32;
    } else {
      task->w = memory->take<uint32_t>(w.components * w.rows * task->row_words);
    }
  }
  if (needs & kNeedsCounts) {
    task->w_counts = memory->take<int32_t>(w.components * w.rows * w.segments);
    if (corrects(*task)) task->tap_sums = memory->take<int32_t>(w.components * task->windows.taps * w.rows);
  }
  if (!memory->counts()) return memory->take<char>(0);
  const int64_t first = needs & kNeedsRows ? bit_rows_scratch(*task) : 0;
  const int64_t second = kernel.scratch(*task, device);
  return memory->take<char>(first > second ? first : second);
}

BitTask describe_common(const bitimpl_weight& weight) {
  BitTask task = {};
  task.weight = describe(weight);
  task.form = weight.format == BITIMPL_BINARY ? Form::kSigns : Form::kPlanes;
  return task;
}

}  // namespace

const BitKernel* choose_bits(const BitTask& task, const Device& device, const char** why) {
  return choose(kKernels, task, device, why);
}

BitTask describe_bits(const bitimpl_weight& weight, int64_t rows) {
  BitTask task = describe_common(weight);
  const Weight& w = task.weight;
  Windows& v = task.windows;
  for (int d = 0; d < 3; ++d) v.size[d] = v.out[d] = v.kernel[d] = v.stride[d] = v.dilation[d] = 1;
  v.taps = 1;
  v.padding_value = -1;
  v.pixels = v.positions = 1;
  task.samples = rows;
  task.groups = 1;
  task.group_channels = w.cols;
  task.group_rows = w.rows;
  const int64_t multiple = 32 * kChunkWords;
  const int32_t sections = sections_of(task.form);
  task.segment_words = sections * words_of(w.segment, multiple);
  const int64_t last = w.cols - (w.segments - 1) * w.segment;
  task.tap_words = (w.segments - 1) * task.segment_words + sections * words_of(last, multiple);
  task.chunk_words = kChunkWords;
  task.pixel_words = (task.tap_words + kRowWords - 1) / kRowWords * kRowWords;
  task.row_words = task.tap_words;
  return task;
}

BitTask describe_bits(const bitimpl_weight& weight, const bitimpl_conv& conv, const bitimpl_image& x) {
  BitTask task = describe_common(weight);
  Windows& v = task.windows;
  v.taps = 1;
  v.padding_value = conv.padding_value;
  v.pixels = v.positions = 1;
  for (int d = 0; d < 3; ++d) {
    v.size[d] = static_cast<int32_t>(x.size[d]);
    v.kernel[d] = static_cast<int32_t>(conv.kernel[d]);
    v.stride[d] = static_cast<int32_t>(conv.stride[d]);
    v.dilation[d] = static_cast<int32_t>(conv.dilation[d]);
    v.before[d] = static_cast<int32_t>(conv.padding_before[d]);
    const int64_t padded = x.size[d] + conv.padding_before[d] + conv.padding_after[d];
    v.out[d] = static_cast<int32_t>((padded - conv.dilation[d] * (conv.kernel[d] - 1) - 1) / conv.stride[d] + 1);
    v.pads |= conv.padding_before[d] > 0 || conv.padding_after[d] > 0;
    v.taps *= v.kernel[d];
    v.pixels *= v.size[d];
    v.positions *= v.out[d];
  }
  task.samples = x.samples;
  task.groups = conv.groups;
  task.group_channels = x.channels / conv.groups;
  task.group_rows = weight.rows / conv.groups;
  const int64_t channels = task.group_channels;
  task.chunk_words = channels <= 32 ? 1 : channels <= 64 ? 2 : kChunkWords;
  task.tap_words = words_of(channels, 32 * task.chunk_words);
  task.segment_words = task.tap_words;
  task.pixel_words = task.groups * task.tap_words;
  task.row_words = (int64_t{task.windows.taps} * task.tap_words + kChunkWords - 1) / kChunkWords * kChunkWords;
  return task;
}

int64_t bit_workspace(BitTask task, const BitKernel& kernel, const Device& device) {
  Divider sizes = {nullptr};
  divide(&task, kernel, device, &sizes);
  return workspace_for(sizes.used);
}

int run_bits(const BitCall& call, const BitKernel& kernel, const Device& device, Stream stream) {
  BitTask task = call.task;
  Divider sizes = {nullptr};
  divide(&task, kernel, device, &sizes);
  char* base = aligned_workspace(call.workspace, call.workspace_bytes, sizes.used, call.query);
  if (base == nullptr && sizes.used > 0) return last_status();
  task = call.task;
  Divider memory = {base};
  void* scratch = base == nullptr ? nullptr : divide(&task, kernel, device, &memory);

  const DeviceGuard current(device.index);
  const int needs = kernel.needs(task, device);
  const int status = prepare_bits(task, needs, stream, scratch);
  return status == BITIMPL_OK ? kernel.run(task, device, stream, scratch) : status;
}

}  // namespace cuda
}  // namespace bitimpl
