// The entry points of the linear operators: every argument is checked here, the task is described, the
// activations are prepared, and the work is cut into tiles for the kernels in use.
#include <stdint.h>

#include "../common/checks.h"
#include "isa.h"
#include "kernels.h"
#include "operators.h"
#include "parallel.h"
#include "quantize.h"

namespace bitimpl {
namespace {

// The weight's task with the form of its activations, from sizes alone, so that a workspace query and
// the call agree.
LinearTask describe_call(const KernelTable& kernels, const bitimpl_weight& weight, int32_t activation,
                         int64_t tokens) {
  LinearTask task = describe(weight);
  Activations& x = task.x;
  x.kind = activation;
  x.rows = tokens;
  const bool low = activation == BITIMPL_ACTIVATION_SIGN || activation == BITIMPL_ACTIVATION_TERNARY;
  if (low && kernels.takes_bits(task)) {
    x.bit_planes = activation == BITIMPL_ACTIVATION_TERNARY ? 2 : 1;
  } else if (activation != BITIMPL_ACTIVATION_FLOAT) {
    x.planes = activation == BITIMPL_ACTIVATION_INT16 ? 2 : 1;
  }
  return task;
}

WorkspaceLayout layout_for(const KernelTable& kernels, const LinearTask& task) {
  const ScratchQuery query =
      task.format == BITIMPL_BINARY ? kernels.binary_scratch : kernels.ternary_scratch;
  return lay_out_workspace(task, query(task));
}

// 63 bytes let a workspace of any alignment be used from its first 64-byte boundary.
int64_t workspace_bytes_for(const WorkspaceLayout& layout, int threads) {
  return layout.scratch + layout.scratch_stride * threads + 63;
}

struct Dispatch {
  LinearKernel kernel;
  const LinearTask& task;
  char* scratch;
  int64_t scratch_stride;
  int64_t blocks;
  int64_t unit;   // row blocks that one thread takes at least
  int64_t units;
  int64_t parts;  // how many pieces the tokens are cut into
};

// Range over (part of the tokens, unit of row blocks), row blocks innermost: a thread walks its weights
// as one stream.
void run_range(void* context, int thread, int64_t begin, int64_t end) {
  const Dispatch& d = *static_cast<const Dispatch*>(context);
  const int64_t tokens = d.task.x.rows;
  while (begin < end) {
    const int64_t part = begin / d.units;
    const int64_t part_end = (part + 1) * d.units < end ? (part + 1) * d.units : end;
    const int64_t block_end = (part_end - part * d.units) * d.unit;
    Tile tile = {};
    tile.block_begin = (begin - part * d.units) * d.unit;
    tile.block_end = block_end < d.blocks ? block_end : d.blocks;
    tile.token_begin = tokens * part / d.parts;
    tile.token_end = tokens * (part + 1) / d.parts;
    tile.scratch = d.scratch + d.scratch_stride * thread;
    d.kernel(d.task, tile);
    begin = part_end;
  }
}

void run_tiles(LinearKernel kernel, const LinearTask& task, char* scratch, int64_t scratch_stride,
               int threads) {
  const int64_t block_rows = block_rows_of(task.format);
  const int64_t blocks = (task.rows + block_rows - 1) / block_rows;
  // Signs of the rows of a whole panel fill bytes: no two threads write to one.
  static_assert(kPanelBlocks * kBase3BlockRows % 8 == 0 && kPanelBlocks * kTwoBitBlockRows % 8 == 0 &&
                    kPanelBlocks * kBinaryBlockRows % 8 == 0,
                "units end with bytes");
  const int64_t unit = task.y_dtype == BITIMPL_SIGNS ? kPanelBlocks : 1;
  const int64_t units = (blocks + unit - 1) / unit;
  const int64_t parts = token_parts(units, task.x.rows, threads);
  const double work = operator_work(task);
  Dispatch dispatch = {kernel, task, scratch, scratch_stride, blocks, unit, units, parts};
  parallel_ranges(units * parts, kPanelBlocks / unit, work, threads, run_range, &dispatch);
}

// What tiles of signs take for granted: unused bits of 0, and scales of 1 until a value is not finite.
void begin_signs(const bitimpl_matrix& y, float* scale) {
  uint8_t* bits = static_cast<uint8_t*>(y.data);
  for (int64_t m = 0; m < y.rows; ++m) {
    scale[m] = 1.0f;
    if (y.cols % 8 != 0) bits[(m * y.row_stride + y.cols) / 8] = 0;
  }
}

// `signs`: null where neither x nor y may be of signs.
int run_linear(Operator op, const bitimpl_linear_call& call, const bitimpl_signs* signs) {
  const bitimpl_weight* weight = call.weight;
  const bitimpl_matrix* x = &call.x;
  const bitimpl_matrix* y = &call.y;
  const int32_t activation = call.activation;
  void* workspace = call.workspace;
  const int64_t workspace_bytes = call.workspace_bytes;
  const KernelTable* kernels = active_kernels();
  if (kernels == nullptr) return BITIMPL_UNSUPPORTED;
  int status = check_weight(weight, true);
  if (status == BITIMPL_OK) status = check_operator(op, "linear", *weight, activation);
  const auto check = signs == nullptr ? check_matrix : check_matrix_or_signs;
  if (status == BITIMPL_OK) status = check(x, "x");
  if (status == BITIMPL_OK) status = check(y, "y");
  if (status == BITIMPL_OK) status = check_tokens(*weight, x->rows);
  if (status == BITIMPL_OK) status = check_shapes(*weight, *x, *y);
  if (status == BITIMPL_OK) status = check_bias(call.bias, call.bias_dtype);
  if (status != BITIMPL_OK) return status;

  LinearTask task = describe_call(*kernels, *weight, activation, x->rows);
  const WorkspaceLayout layout = layout_for(*kernels, task);
  const int64_t least = workspace_bytes_for(layout, 1);
  if (workspace == nullptr || workspace_bytes < least) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "workspace holds %lld bytes at %p, one thread needs %lld: "
                "size it with bitimpl_linear_workspace",
                show(workspace_bytes), workspace, show(least));
  }
  const bool binary = op == Operator::kBinary;
  record_served(binary ? "binary_linear" : "ternary_linear", name_of_format(weight->format), task.x,
                kernels->isa, bit_panel_serves(task) ? "planes" : nullptr);
  if (x->rows == 0) return BITIMPL_OK;

  char* base = aligned_base(workspace);
  // A workspace that was sized when fewer threads were set serves with that many.
  int threads = available_threads();
  if (layout.scratch_stride > 0) {
    const int64_t slices = (workspace_bytes - 63 - layout.scratch) / layout.scratch_stride;
    if (slices < threads) threads = static_cast<int>(slices);
  }
  const float* x_scale = signs == nullptr ? nullptr : signs->x_scale;
  prepare_activations(*kernels, *x, x_scale, layout, base, threads, &task);
  task.bias = float_bias(*kernels, call.bias, call.bias_dtype, task.rows,
                         reinterpret_cast<float*>(base + layout.bias));
  task.y = y->data;
  task.y_dtype = y->dtype;
  task.y_stride = y->row_stride;
  if (y->dtype == BITIMPL_SIGNS) {
    set_thresholds(*signs, &task);
    begin_signs(*y, signs->y_scale);
  }
  run_tiles(binary ? kernels->binary : kernels->ternary, task, base + layout.scratch,
            layout.scratch_stride, threads);
  return BITIMPL_OK;
}

int run_matrices(Operator op, const bitimpl_weight* weight, const bitimpl_matrix* x,
                 int32_t activation, const void* bias, int32_t bias_dtype, const bitimpl_matrix* y,
                 void* workspace, int64_t workspace_bytes) {
  clear_error();
  if (x == nullptr || y == nullptr) return check_matrix(nullptr, x == nullptr ? "x" : "y");
  return run_linear(op, {weight, *x, *y, bias, bias_dtype, activation, workspace, workspace_bytes}, nullptr);
}

int check_call(const bitimpl_linear_call* call) {
  if (call != nullptr) return BITIMPL_OK;
  return fail(BITIMPL_INVALID_ARGUMENT, "call is NULL: pass a bitimpl_linear_call");
}

Operator operator_of_call(const bitimpl_linear_call& call) {
  return call.weight == nullptr ? Operator::kTernary : operator_of(call.weight->format);
}

}  // namespace
}  // namespace bitimpl

extern "C" {

int bitimpl_abi_version(void) { return BITIMPL_ABI_VERSION; }

int bitimpl_threads(void) { return bitimpl::available_threads(); }

int64_t bitimpl_linear_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation) {
  using namespace bitimpl;
  clear_error();
  const KernelTable* kernels = active_kernels();
  if (kernels == nullptr || check_weight(weight, false) != BITIMPL_OK) return -1;
  const Operator op = operator_of(weight->format);
  if (check_operator(op, "linear", *weight, activation) != BITIMPL_OK) return -1;
  if (check_tokens(*weight, rows) != BITIMPL_OK) return -1;
  const LinearTask task = describe_call(*kernels, *weight, activation, rows);
  return workspace_bytes_for(layout_for(*kernels, task), available_threads());
}

int bitimpl_binary_linear(const bitimpl_weight* weight, const bitimpl_matrix* x,
                          int32_t activation, const void* bias, int32_t bias_dtype,
                          const bitimpl_matrix* y, void* workspace, int64_t workspace_bytes) {
  return bitimpl::run_matrices(bitimpl::Operator::kBinary, weight, x, activation, bias, bias_dtype, y,
                               workspace, workspace_bytes);
}

int bitimpl_ternary_linear(const bitimpl_weight* weight, const bitimpl_matrix* x,
                           int32_t activation, const void* bias, int32_t bias_dtype,
                           const bitimpl_matrix* y, void* workspace, int64_t workspace_bytes) {
  return bitimpl::run_matrices(bitimpl::Operator::kTernary, weight, x, activation, bias, bias_dtype, y,
                               workspace, workspace_bytes);
}

int bitimpl_linear(const bitimpl_linear_call* call) {
  using namespace bitimpl;
  clear_error();
  const int status = check_call(call);
  return status == BITIMPL_OK ? run_linear(operator_of_call(*call), *call, nullptr) : status;
}

int bitimpl_linear_signs(const bitimpl_linear_call* call, const bitimpl_signs* signs) {
  using namespace bitimpl;
  clear_error();
  int status = check_call(call);
  if (status == BITIMPL_OK) {
    status = check_signs(signs, "linear", call->x.dtype == BITIMPL_SIGNS,
                         call->y.dtype == BITIMPL_SIGNS, call->x.rows, call->activation);
  }
  return status == BITIMPL_OK ? run_linear(operator_of_call(*call), *call, signs) : status;
}

}  // extern "C"
