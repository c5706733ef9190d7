// bitimpl_cuda_binarize: the signs of a matrix of floats as bits, and their scales, for their own sake; a
// team of warps a row.
#include "../common/checks.h"
#include "bit_words.cuh"
#include "bytes.cuh"
#include "workspace.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
const char* const kQuery = "bitimpl_cuda_binarize_workspace";

struct Binarization {
  bitimpl_matrix x;
  const void* bias;
  const float* given;
  uint8_t* signs;
  int64_t row_bytes;  // from row to row
  float* scale;
  double* sums;  // of each row: where one mean is of all
  Units units;   // of a row: one
  int32_t bias_dtype;
  int32_t rule;
  int32_t team;
};

// q = x + bias >= 0, with the magnitudes of x; `largest` is of x + bias too.
struct TakeBiasedSigns {
  static constexpr int kBits = 1;
  const Binarization& task;
  Magnitudes seen;
  __device__ __forceinline__ Nibbles take(const float (&x)[4], int64_t first) {
    seen.add(x);
    float bias[4] = {};
    if (task.bias != nullptr) {
      const int64_t left = most<int64_t>(task.x.cols - first, 0);
      load_floats(task.bias, task.bias_dtype, first, static_cast<int>(least<int64_t>(left, 4)), bias);
    }
    uint32_t nibble = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float sum = x[i] + bias[i];
      seen.largest = most(seen.largest, magnitude_bits(sum));
      nibble |= static_cast<uint32_t>(sum >= 0.0f) << i;
    }
    return {{nibble, 0}};
  }
};

__global__ void __launch_bounds__(kThreads, 2) binarize_kernel(Binarization task) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t row = int64_t{blockIdx.x} * (kWarps / task.team) + warp / task.team;
  const int32_t own = warp % task.team;
  TakeBiasedSigns taker = {task, {}};
  if (row < task.x.rows) {
    const int64_t bytes = ceil_div<int64_t>(task.x.cols, 8);
    const int64_t first = row * task.x.row_stride * (task.x.dtype == BITIMPL_F32 ? 4 : 2);
    const uint8_t* from = static_cast<const uint8_t*>(task.x.data) + first;
    uint8_t* to = task.signs + row * task.row_bytes;
    for (int32_t chunk = own; chunk < chunks_of_item(task.units); chunk += task.team) {
      const WordPlace place = word_at(task.units, 0, chunk, lane);
      uint32_t words[2] = {};
      take_chunk(from, task.x.dtype, {int64_t{kWarp} * place.inside, place.columns}, taker, words);
      const int64_t at = int64_t{4} * place.inside;
      if (place.exists) store_bytes(to + at, words[0], static_cast<int>(least<int64_t>(bytes - at, 4)));
    }
  }
  const Magnitudes all = over_team(taker.seen, shared_memory<Magnitudes>(), task.team);
  if (row >= task.x.rows || own > 0 || lane > 0) return;
  const double sum = sum_of(all);
  if (task.rule == BITIMPL_SIGN_SCALE_TENSOR) {
    task.sums[row] = sum;
  } else if (task.rule == BITIMPL_SIGN_SCALE_TOKEN) {
    task.scale[row] = mean_of(sum, task.x.cols);
  } else {
    task.scale[row] = !finite(all.largest) ? NAN : task.given == nullptr ? 1.0f : *task.given;
  }
}

// One block: the mean of all rows, for each of them.
__global__ void __launch_bounds__(kThreads) tensor_scale_kernel(Binarization task) {
  double sum = 0.0;
  for (int64_t row = threadIdx.x; row < task.x.rows; row += kThreads) sum += task.sums[row];
  sum = over_block(sum, shared_memory<double>(), Add{});
  const float scale = mean_of(sum, task.x.rows * task.x.cols);
  for (int64_t row = threadIdx.x; row < task.x.rows; row += kThreads) task.scale[row] = scale;
}

int64_t used_by(int64_t rows, int32_t rule) {
  Divider memory = {nullptr};
  if (rule == BITIMPL_SIGN_SCALE_TENSOR) memory.take<double>(rows);
  return memory.used;
}

int check_rule(int32_t rule) {
  if (rule >= BITIMPL_SIGN_SCALE_GIVEN && rule <= BITIMPL_SIGN_SCALE_TENSOR) return BITIMPL_OK;
  return fail(BITIMPL_INVALID_ARGUMENT,
              "rule is %d: choose %d (given), %d (mean of the token) or %d (mean of the tensor)", rule,
              BITIMPL_SIGN_SCALE_GIVEN, BITIMPL_SIGN_SCALE_TOKEN, BITIMPL_SIGN_SCALE_TENSOR);
}

int check_call(const bitimpl_cuda_binarize_call* call) {
  if (call == nullptr) return fail(BITIMPL_INVALID_ARGUMENT, "call is null: pass a bitimpl_cuda_binarize_call");
  constexpr int64_t kMostColumns = int64_t{1} << 30;
  int status = check_rule(call->rule);
  if (status == BITIMPL_OK) status = check_matrix(&call->x, "x");
  if (status == BITIMPL_OK) status = check_matrix_or_signs(&call->signs, "signs");
  if (status == BITIMPL_OK) status = check_bias(call->bias, call->bias_dtype);
  if (status != BITIMPL_OK) return status;
  if (call->signs.dtype != BITIMPL_SIGNS) {
    return fail(BITIMPL_INVALID_ARGUMENT, "signs has dtype %d: use %d (signs)", call->signs.dtype, BITIMPL_SIGNS);
  }
  if (call->signs.rows != call->x.rows || call->signs.cols != call->x.cols) {
    return fail(BITIMPL_INVALID_ARGUMENT, "signs is [%lld, %lld] for x [%lld, %lld]: give both the same size",
                show(call->signs.rows), show(call->signs.cols), show(call->x.rows), show(call->x.cols));
  }
  if (call->x.cols > kMostColumns) {
    return fail(BITIMPL_UNSUPPORTED, "x has %lld columns, at most %lld are supported: give it more rows instead",
                show(call->x.cols), show(kMostColumns));
  }
  if (call->x.rows == 0) return BITIMPL_OK;
  if (call->scale == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "scale is null: pass %lld bytes", show(4 * call->x.rows));
  }
  if (!aligned(call->scale, sizeof(float)) || !aligned(call->given, sizeof(float))) {
    return fail(BITIMPL_INVALID_ARGUMENT, "scale lies at %p, given at %p: align them to their 4 bytes",
                static_cast<const void*>(call->scale), static_cast<const void*>(call->given));
  }
  return BITIMPL_OK;
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int64_t bitimpl_cuda_binarize_workspace(int64_t rows, int32_t rule) {
  clear_error();
  if (check_rule(rule) != BITIMPL_OK) return -1;
  if (rows < 0) {
    fail(BITIMPL_INVALID_ARGUMENT, "rows is %lld: use 0 or more", show(rows));
    return -1;
  }
  return workspace_for(used_by(rows, rule));
}

int bitimpl_cuda_binarize(const bitimpl_cuda_binarize_call* call, int32_t device, void* stream) {
  clear_error();
  int status = check_call(call);
  if (status != BITIMPL_OK) return status;
  const Device* found = device_at(device);
  if (found == nullptr) return last_status();
  if (call->x.rows == 0) return BITIMPL_OK;
  const int64_t used = used_by(call->x.rows, call->rule);
  char* base = aligned_workspace(call->workspace, call->workspace_bytes, used, kQuery);
  if (base == nullptr && used > 0) return last_status();

  Binarization task = {};
  task.x = call->x;
  task.bias = call->bias;
  task.given = call->given;
  task.signs = static_cast<uint8_t*>(call->signs.data);
  task.row_bytes = call->signs.row_stride / 8;
  task.scale = call->scale;
  task.sums = reinterpret_cast<double*>(base);
  const int32_t words = static_cast<int32_t>(ceil_div<int64_t>(call->x.cols, kWarp));
  task.units = make_units(1, call->x.cols, call->x.cols, words, words);
  task.bias_dtype = call->bias_dtype;
  task.rule = call->rule;
  task.team = 1;
  while (task.team < kWarps && task.team < chunks_of_item(task.units)) task.team *= 2;

  const DeviceGuard current(device);
  const int64_t blocks = ceil_div<int64_t>(call->x.rows, kWarps / task.team);
  const Grid grid = {{static_cast<uint32_t>(blocks)}, {kThreads}, kWarps * sizeof(Magnitudes), stream};
  status = launch(binarize_kernel, grid, task);
  if (status != BITIMPL_OK || call->rule != BITIMPL_SIGN_SCALE_TENSOR) return status;
  const Grid of_scale = {{1}, {kThreads}, kWarps * sizeof(double), stream};
  return launch(tensor_scale_kernel, of_scale, task);
}

}  // extern "C"
