// Latent weights into packed codes, scales and the mask of the straight-through estimator. With a scale a row
// (or group) a block takes a row group: it finds the thresholds, a warp a row, and packs what it has just
// read, so that the weights come from memory once. One scale for all takes a pass over them before.
#include "../common/checks.h"
#include "block.cuh"
#include "bytes.cuh"
#include "weight.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kFinishThreads = 256;
constexpr int kSumWarps = 4;
constexpr int kSegmentsAtOnce = 64;  // whose thresholds a block holds
constexpr int kUnitColumns = 8;      // of a thread that packs: a byte of the mask
constexpr int64_t kAlignment = 16;

// Sums over a line.
struct Sums {
  double total;      // of the magnitudes beyond a threshold
  int64_t count;     // of them
  uint32_t largest;  // bits of the largest magnitude: floats order like them, NaN above infinity
};

struct Quantisation {
  Weight weight;  // codes are written
  bitimpl_matrix latent;
  int32_t rule;
  int32_t per_tensor;
  float* scales;
  uint8_t* mask;
  Sums* sums;        // per tensor: of each row
  float* threshold;  // per tensor
};

struct Line {
  float threshold;
  float scale;
};

// Sums of a warp over columns [begin, end) of a row, in every lane.
__device__ Sums sum_line(const bitimpl_matrix& latent, int64_t row, int64_t begin, int64_t end,
                         float threshold) {
  Sums sums = {0.0, 0, 0};
  const int lane = threadIdx.x % kWarp;
  for (int64_t k = begin + 4 * lane; k < end; k += 4 * kWarp) {
    float value[4];
    const int valid = static_cast<int>(least<int64_t>(4, end - k));
    load_floats(latent.data, latent.dtype, row * latent.row_stride + k, valid, value);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float magnitude = fabsf(value[i]);
      sums.largest = most(sums.largest, bits_of(magnitude));
      if (i < valid && !(magnitude <= threshold)) {  // a NaN counts
        sums.total += magnitude;
        sums.count += 1;
      }
    }
  }
  for (int mask = 1; mask < kWarp; mask *= 2) {
    sums.total += shuffle_xor(sums.total, mask);
    sums.count += shuffle_xor(sums.count, mask);
    sums.largest = most(sums.largest, shuffle_xor(sums.largest, mask));
  }
  return sums;
}

__device__ __forceinline__ float mean_of(double total, int64_t count) {
  return count == 0 ? 0.0f : static_cast<float>(total / static_cast<double>(count));
}

// Threshold and scale from the sums over all n weights of a line; TWN's scale comes from a second pass.
__device__ __forceinline__ Line line_of(const Sums& all, int64_t n, int32_t rule) {
  constexpr float kFloor = 1e-5f;
  if (rule == BITIMPL_RULE_TWN) return {0.7f * mean_of(all.total, n), 0.0f};
  float scale = float_of_bits(all.largest);
  if (rule == BITIMPL_RULE_ABSMEAN) {
    const float mean = mean_of(all.total, n);
    scale = mean < kFloor ? kFloor : mean;
  }
  return {scale / 2, scale};
}

__device__ __forceinline__ float twn_scale(const Sums& kept) {
  return finite(kept.largest) ? mean_of(kept.total, kept.count) : NAN;
}

// ---- one scale for all ---------------------------------------------------------------------------------

__global__ void __launch_bounds__(kSumWarps* kWarp)
    row_sums_kernel(Quantisation task, const float* threshold) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSumWarps + threadIdx.x / kWarp;
  if (row >= task.weight.rows) return;
  const float beyond = threshold == nullptr ? -1.0f : *threshold;
  const Sums sums = sum_line(task.latent, row, 0, task.weight.cols, beyond);
  if (threadIdx.x % kWarp == 0) task.sums[row] = sums;
}

// One block: the rows' sums together; the threshold, or after it TWN's scale.
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(Quantisation task, int32_t second) {
  Sums sums = {0.0, 0, 0};
  for (int64_t row = threadIdx.x; row < task.weight.rows; row += kFinishThreads) {
    const Sums of_row = task.sums[row];
    sums.total += of_row.total;
    sums.count += of_row.count;
    sums.largest = most(sums.largest, of_row.largest);
  }
  void* room = shared_memory<void>();
  sums.total = over_block(sums.total, static_cast<double*>(room), Add{});
  sums.count = over_block(sums.count, static_cast<int64_t*>(room), Add{});
  sums.largest = over_block(sums.largest, static_cast<uint32_t*>(room), Larger{});
  if (threadIdx.x != 0) return;
  if (second) {
    task.scales[0] = twn_scale(sums);
    return;
  }
  const Line line = line_of(sums, task.weight.rows * task.weight.cols, task.rule);
  *task.threshold = line.threshold;
  task.scales[0] = line.scale;
}

// ---- codes ---------------------------------------------------------------------------------------------

// Digits of four weights, a byte each, and which of them the estimator "clip" lets through.
__device__ __forceinline__ uint32_t quantise_four(const float (&value)[4], float threshold,
                                                  uint32_t* inside) {
  uint32_t digits = 0;
  *inside = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = 1u + (value[i] > threshold) - (value[i] < -threshold);
    digits |= digit << 8 * i;
    *inside |= static_cast<uint32_t>(fabsf(value[i]) <= 1.0f) << i;
  }
  return digits;
}

// Eight columns of a row group: codes and mask. thresholds: of row j, at j * stride.
template <int FORMAT>
__device__ void pack_unit(const Quantisation& task, int64_t group, const Step& step, int32_t column,
                          const float* thresholds, int32_t stride) {
  const Weight& w = task.weight;
  const int32_t columns = least(kUnitColumns, step.columns - column);
  const int64_t first = step.first + column;
  uint32_t packed[2] = {};
#pragma unroll
  for (int j = 0; j < Digits<FORMAT>::kRows; ++j) {
    const int64_t row = group * Digits<FORMAT>::kRows + j;
    const bool exists = row < w.rows;
    uint32_t bits = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t digits = 0x01010101u;
      uint32_t inside = 0;
      const int32_t valid = columns - 4 * half;
      if (exists && valid > 0) {
        float value[4];
        load_floats(task.latent.data, task.latent.dtype, row * task.latent.row_stride + first + 4 * half,
                    valid, value);
        digits = quantise_four(value, thresholds[j * stride], &inside);
      }
      packed[half] += in_place<FORMAT>(digits, j);
      bits |= inside << 4 * half;
    }
    if (exists && task.mask != nullptr) {
      const int64_t row_bytes = ceil_div<int64_t>(w.cols, kUnitColumns);
      task.mask[row * row_bytes + first / kUnitColumns] = static_cast<uint8_t>(bits & ((1u << columns) - 1));
    }
  }
  uint8_t* to = const_cast<uint8_t*>(codes_at(w, group, 0, step)) + column;
  store_bytes(to, packed[0], columns);
  store_bytes(to + 4, packed[1], columns - 4);
}

// A block a row group, a warp a row of it.
template <int FORMAT>
__global__ void __launch_bounds__(Digits<FORMAT>::kRows* kWarp) quantize_weight_kernel(Quantisation task) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  constexpr int kStepUnits = kStep / kUnitColumns;
  const Weight& w = task.weight;
  float* thresholds = shared_memory<float>();  // [kRows, kSegmentsAtOnce]
  const int64_t group = blockIdx.x;
  const int warp = threadIdx.x / kWarp;
  const int64_t row = group * kRows + warp;
  for (int32_t begin = 0; begin < w.segments; begin += kSegmentsAtOnce) {
    const int32_t end = least(begin + kSegmentsAtOnce, w.segments);
    for (int32_t segment = begin; segment < end && row < w.rows; ++segment) {
      Line line = {0.0f, 0.0f};
      if (task.per_tensor) {
        line.threshold = *task.threshold;
      } else {
        const int64_t first = segment * w.segment;
        const int64_t last = least(first + w.segment, w.cols);
        line = line_of(sum_line(task.latent, row, first, last, -1.0f), last - first, task.rule);
        if (task.rule == BITIMPL_RULE_TWN) {
          line.scale = twn_scale(sum_line(task.latent, row, first, last, line.threshold));
        }
      }
      if (threadIdx.x % kWarp == 0) {
        thresholds[warp * kSegmentsAtOnce + segment - begin] = line.threshold;
        if (!task.per_tensor) task.scales[row * w.segments + segment] = line.scale;
      }
    }
    __syncthreads();
    const int32_t last_step = least(end * w.segment_steps, w.steps);
    const int64_t units = static_cast<int64_t>(last_step) * kStepUnits;
    for (int64_t unit = static_cast<int64_t>(begin) * w.segment_steps * kStepUnits + threadIdx.x;
         unit < units; unit += kRows * kWarp) {
      const Step step = step_at(w, static_cast<int32_t>(unit / kStepUnits));
      const int32_t column = static_cast<int32_t>(unit % kStepUnits) * kUnitColumns;
      if (column >= step.columns) continue;
      pack_unit<FORMAT>(task, group, step, column, thresholds + step.segment - begin, kSegmentsAtOnce);
    }
    __syncthreads();
  }
}

// ---- the mask on a gradient ------------------------------------------------------------------------------

__global__ void __launch_bounds__(kFinishThreads)
    apply_mask_kernel(const uint8_t* mask, bitimpl_matrix grad) {
  const int32_t row_bytes = static_cast<int32_t>(ceil_div<int64_t>(grad.cols, kUnitColumns));
  const int64_t bytes = grad.rows * row_bytes;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x; unit < bytes;
       unit += static_cast<int64_t>(gridDim.x) * kFinishThreads) {
    const int64_t row = divide(unit, row_bytes);
    const int64_t first = (unit - row * row_bytes) * kUnitColumns;
    const uint32_t bits = mask[unit];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int valid = static_cast<int>(least<int64_t>(4, grad.cols - first - 4 * half));
      const uint32_t four = bits >> 4 * half & 15;
      if (valid <= 0 || four == 15) continue;
      const int64_t at = row * grad.row_stride + first + 4 * half;
      float value[4];
      load_floats(grad.data, grad.dtype, at, valid, value);
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] = four >> i & 1 ? value[i] : 0.0f;
      store_floats(grad.data, grad.dtype, at, value, valid);
    }
  }
}

// ---- starts ----------------------------------------------------------------------------------------------

int64_t workspace_of(int64_t rows) {
  return rows * static_cast<int64_t>(sizeof(Sums)) + static_cast<int64_t>(sizeof(float)) + kAlignment - 1;
}

// Threshold and scale of the whole tensor.
int start_tensor(const Quantisation& task, Stream stream) {
  const uint32_t blocks = static_cast<uint32_t>(ceil_div<int64_t>(task.weight.rows, kSumWarps));
  const Grid sums = {{blocks}, {kSumWarps * kWarp}, 0, stream};
  const Grid finish = {{1}, {kFinishThreads}, kFinishThreads / kWarp * sizeof(double), stream};
  const int passes = task.rule == BITIMPL_RULE_TWN ? 2 : 1;
  for (int32_t second = 0; second < passes; ++second) {
    const float* threshold = second ? task.threshold : nullptr;
    int status = launch(row_sums_kernel, sums, task, threshold);
    if (status == BITIMPL_OK) status = launch(finish_kernel, finish, task, second);
    if (status != BITIMPL_OK) return status;
  }
  return BITIMPL_OK;
}

template <int FORMAT>
int start_codes(const Quantisation& task, Stream stream) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const Grid grid = {{static_cast<uint32_t>(task.weight.groups)},
                     {kRows * kWarp},
                     kRows * kSegmentsAtOnce * sizeof(float),
                     stream};
  return launch(quantize_weight_kernel<FORMAT>, grid, task);
}

// The weight that a call makes, without scales.
bitimpl_weight result_of(const bitimpl_cuda_latent_call& call) {
  bitimpl_weight weight = {};
  weight.layout = BITIMPL_LAYOUT_V1;
  weight.format = call.format;
  weight.components = 1;
  weight.rows = call.latent.rows;
  weight.cols = call.latent.cols;
  weight.group_size = call.group_size;
  weight.codes = call.codes;
  weight.codes_bytes = call.codes_bytes;
  return weight;
}

int check_call(const bitimpl_cuda_latent_call& call) {
  int status = check_matrix(&call.latent, "latent");
  const bitimpl_weight weight = result_of(call);
  if (status == BITIMPL_OK) status = check_weight(&weight, false);
  if (status != BITIMPL_OK) return status;
  if (call.format == BITIMPL_BINARY) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "format is %d (binary): ternary codes take %d (two_bit) or %d (base3)", call.format,
                BITIMPL_TWO_BIT, BITIMPL_BASE3);
  }
  if (call.rule < BITIMPL_RULE_ABSMEAN || call.rule > BITIMPL_RULE_TWN) {
    return fail(BITIMPL_INVALID_ARGUMENT, "rule is %d: use %d (absmean), %d (absmax) or %d (twn)", call.rule,
                BITIMPL_RULE_ABSMEAN, BITIMPL_RULE_ABSMAX, BITIMPL_RULE_TWN);
  }
  if (call.per_tensor != 0 && call.group_size != 0) {
    return fail(BITIMPL_INVALID_ARGUMENT, "per_tensor and group_size %lld exclude each other: set one to 0",
                show(call.group_size));
  }
  if (call.scales == nullptr || !aligned(call.scales, sizeof(float))) {
    return fail(BITIMPL_INVALID_ARGUMENT, "scales lie at %p: pass float32 memory, aligned",
                static_cast<void*>(call.scales));
  }
  if (call.per_tensor != 0 &&
      (call.workspace == nullptr || call.workspace_bytes < workspace_of(call.latent.rows))) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "workspace holds %lld bytes at %p, the call needs %lld: size it with "
                "bitimpl_cuda_quantize_weight_workspace",
                show(call.workspace_bytes), call.workspace, show(workspace_of(call.latent.rows)));
  }
  return BITIMPL_OK;
}

int run(const bitimpl_cuda_latent_call& call, int32_t index, Stream stream) {
  const int checked = check_call(call);
  if (checked != BITIMPL_OK) return checked;
  const Device* device = device_at(index);
  if (device == nullptr) return last_status();
  Quantisation task = {};
  task.weight = describe(result_of(call));
  task.latent = call.latent;
  task.rule = call.rule;
  task.per_tensor = call.per_tensor != 0;
  task.scales = call.scales;
  task.mask = call.mask;
  const DeviceGuard current(index);
  if (task.per_tensor) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(call.workspace);
    task.sums = reinterpret_cast<Sums*>((start + kAlignment - 1) / kAlignment * kAlignment);
    task.threshold = reinterpret_cast<float*>(task.sums + task.weight.rows);
    const int status = start_tensor(task, stream);
    if (status != BITIMPL_OK) return status;
  }
  if (call.format == BITIMPL_BASE3) return start_codes<BITIMPL_BASE3>(task, stream);
  return start_codes<BITIMPL_TWO_BIT>(task, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int64_t bitimpl_cuda_quantize_weight_workspace(int64_t rows, int32_t per_tensor) {
  clear_error();
  if (rows < 1 || rows > kMaxDimension) {
    fail(BITIMPL_INVALID_ARGUMENT, "the weight has %lld rows: pass 1 to %lld", show(rows),
         show(kMaxDimension));
    return -1;
  }
  return per_tensor == 0 ? 0 : workspace_of(rows);
}

int bitimpl_cuda_quantize_weight(const bitimpl_cuda_latent_call* call, int32_t device, void* stream) {
  clear_error();
  if (call == nullptr) return fail(BITIMPL_INVALID_ARGUMENT, "call is null: pass a bitimpl_cuda_latent_call");
  return run(*call, device, stream);
}

int bitimpl_cuda_apply_mask(const uint8_t* mask, const bitimpl_matrix* grad, int32_t device, void* stream) {
  clear_error();
  const int status = check_matrix(grad, "grad");
  if (status != BITIMPL_OK) return status;
  if (mask == nullptr) return fail(BITIMPL_INVALID_ARGUMENT, "mask is null: pass one bit for each weight");
  const Device* found = device_at(device);
  if (found == nullptr) return last_status();
  if (grad->rows == 0) return BITIMPL_OK;
  constexpr int64_t kBlocksAMultiprocessor = 16;
  const int64_t bytes = grad->rows * ceil_div<int64_t>(grad->cols, kUnitColumns);
  const int64_t blocks =
      least(ceil_div<int64_t>(bytes, kFinishThreads), found->multiprocessors * kBlocksAMultiprocessor);
  const DeviceGuard current(device);
  const Grid grid = {{static_cast<uint32_t>(blocks)}, {kFinishThreads}, 0, stream};
  return launch(apply_mask_kernel, grid, mask, *grad);
}

}  // extern "C"
