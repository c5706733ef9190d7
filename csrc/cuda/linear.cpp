// The entry points of the linear operators: every argument is checked here, a kernel is chosen, the workspace
// is divided and the activations are prepared. Binary weights with signs for activations are products of bits; with
// other activations their bits become codes of two_bit first, for the kernels of bytes.
#include "../common/checks.h"
#include "../include/impl_cuda.h"
#include "bit_kernels.h"
#include "choice.h"
#include "kernels.h"
#include "weight.h"
#include "workspace.h"

namespace bitimpl {
namespace cuda {
namespace {

// In the order of preference.
const LinearKernel* const kKernels[] = {
#ifdef BITIMPL_HAS_SM90A
    &kWgmma,
#endif
    &kGemm, &kSmallBatch, &kGemv, &kFloat, &kAny};

const char* const kQuery = "bitimpl_cuda_linear_workspace";

// How a call is served: by one of the two.
struct Service {
  const BitKernel* bits;
  const LinearKernel* bytes;
};

bool may_be_bits(const bitimpl_weight& weight, int32_t activation) {
  if (weight.format == BITIMPL_BINARY) return activation == BITIMPL_ACTIVATION_SIGN;
  return activation == BITIMPL_ACTIVATION_TERNARY;
}

// The task of a call on bytes, without memory.
LinearTask describe_call(const bitimpl_weight& weight, int64_t rows, int32_t activation) {
  bitimpl_weight bytes = weight;
  if (weight.format == BITIMPL_BINARY) bytes.format = BITIMPL_TWO_BIT;
  LinearTask task = {};
  task.weight = describe(bytes);
  task.source.activation = activation;
  task.x.rows = rows;
  task.x.planes = activation == BITIMPL_ACTIVATION_FLOAT ? 0 : activation == BITIMPL_ACTIVATION_INT16 ? 2 : 1;
  task.x.row_bytes = int64_t{kStep} * task.weight.steps;
  return task;
}

// BITIMPL_OK, or fail(...).
int choose_service(const bitimpl_weight& weight, const BitTask& bits, const LinearTask& bytes, const Device& device,
                   Service* service) {
  const int32_t activation = bytes.source.activation;
  const char* why_not_bits = nullptr;
  const char* why_not_bytes = nullptr;
  *service = {};
  if (may_be_bits(weight, activation)) service->bits = choose_bits(bits, device, &why_not_bits);
  if (service->bits != nullptr) return BITIMPL_OK;
  service->bytes = choose(kKernels, bytes, device, &why_not_bytes);
  if (service->bytes != nullptr) return BITIMPL_OK;
  return fail_choice(weight.format, activation, why_not_bits != nullptr ? why_not_bits : why_not_bytes);
}

// Gives the task its memory; returns the kernel's scratch. Binary weights: codes of two_bit are to be written.
void* divide(LinearTask* task, bool spreads, const LinearKernel& kernel, const Device& device, Divider* memory) {
  Tokens& x = task->x;
  const Weight& w = task->weight;
  if (spreads) task->weight.codes = memory->take<uint8_t>(w.components * w.groups * w.cols);
  if (!kernel.quantises(*task, device)) {
    for (int plane = 0; plane < x.planes; ++plane) {
      x.q[plane] = memory->take<int8_t>(x.rows * x.row_bytes);
      x.sums[plane] = memory->take<int32_t>(x.rows * w.segments);
    }
    if (x.planes > 0) x.scale = memory->take<float>(x.rows);
  }
  // The last part: its size matters only where sizes are counted.
  return memory->take<char>(memory->counts() ? kernel.scratch(*task, device) : 0);
}

int check_call(const bitimpl_linear_call& call, const bitimpl_signs* signs) {
  int status = check_weight(call.weight, true);
  if (status != BITIMPL_OK) return status;
  const bitimpl_weight& weight = *call.weight;
  status = check_operator(operator_of(weight.format), "linear", weight, call.activation);
  const auto check = signs == nullptr ? check_matrix : check_matrix_or_signs;
  if (status == BITIMPL_OK) status = check(&call.x, "x");
  if (status == BITIMPL_OK) status = check(&call.y, "y");
  if (status == BITIMPL_OK) status = check_tokens(weight, call.x.rows);
  if (status == BITIMPL_OK) status = check_shapes(weight, call.x, call.y);
  return status == BITIMPL_OK ? check_bias(call.bias, call.bias_dtype) : status;
}

const char* operation_of(int32_t format) { return format == BITIMPL_BINARY ? "binary_linear" : "ternary_linear"; }

int run_bytes(const bitimpl_linear_call& call, LinearTask task, const LinearKernel& kernel, const Device& device,
              Stream stream) {
  const bool spreads = call.weight->format == BITIMPL_BINARY;
  Divider sizes = {nullptr};
  LinearTask sized = task;
  divide(&sized, spreads, kernel, device, &sizes);
  char* base = aligned_workspace(call.workspace, call.workspace_bytes, sizes.used, kQuery);
  if (base == nullptr && sizes.used > 0) return last_status();
  Divider memory = {base};
  void* scratch = base == nullptr ? nullptr : divide(&task, spreads, kernel, device, &memory);
  task.source = {call.x.data, call.x.row_stride, call.x.dtype, call.activation};
  task.result = {call.y.data, call.bias, call.y.row_stride, call.y.dtype, call.bias_dtype};

  const DeviceGuard current(device.index);
  int status = spreads ? spread_bits(call.weight->codes, task.weight, stream) : BITIMPL_OK;
  if (status == BITIMPL_OK && !kernel.quantises(task, device) && task.x.planes > 0) status = quantize(task, stream);
  return status == BITIMPL_OK ? kernel.run(task, device, stream, scratch) : status;
}

// `signs`: null where neither x nor y may be of signs.
int run(const bitimpl_linear_call& call, const bitimpl_signs* signs, int32_t index, Stream stream) {
  int status = check_call(call, signs);
  if (status != BITIMPL_OK) return status;
  const Device* device = device_at(index);
  if (device == nullptr) return last_status();
  const bitimpl_weight& weight = *call.weight;
  BitTask bits = describe_bits(weight, call.x.rows);
  const LinearTask bytes = describe_call(weight, call.x.rows, call.activation);
  Service service;
  status = choose_service(weight, bits, bytes, *device, &service);
  if (status != BITIMPL_OK) return status;
  note_served(operation_of(weight.format), weight.format, call.activation,
              service.bits != nullptr ? service.bits->name : service.bytes->name, *device);
  if (call.x.rows == 0) return BITIMPL_OK;
  if (service.bits == nullptr) return run_bytes(call, bytes, *service.bytes, *device, stream);
  bits.source = {call.x.data, signs == nullptr ? nullptr : signs->x_scale, call.x.dtype, call.x.row_stride, 1, {}};
  bits.result = {call.y.data, call.bias, call.y.dtype, call.bias_dtype, call.y.row_stride, 1, {}, {}};
  if (call.y.dtype == BITIMPL_SIGNS) bits.result.signs = *signs;
  return run_bits({bits, call.workspace, call.workspace_bytes, kQuery}, *service.bits, *device, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int64_t bitimpl_cuda_linear_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation,
                                      int32_t device) {
  clear_error();
  if (check_weight(weight, false) != BITIMPL_OK) return -1;
  if (check_operator(operator_of(weight->format), "linear", *weight, activation) != BITIMPL_OK) return -1;
  if (check_tokens(*weight, rows) != BITIMPL_OK) return -1;
  const Device* found = device_at(device);
  if (found == nullptr) return -1;
  const BitTask bits = describe_bits(*weight, rows);
  LinearTask bytes = describe_call(*weight, rows, activation);
  Service service;
  if (choose_service(*weight, bits, bytes, *found, &service) != BITIMPL_OK) return -1;
  if (service.bits != nullptr) return bit_workspace(bits, *service.bits, *found);
  Divider sizes = {nullptr};
  divide(&bytes, weight->format == BITIMPL_BINARY, *service.bytes, *found, &sizes);
  return workspace_for(sizes.used);
}

int64_t bitimpl_cuda_linear_signs_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation,
                                            int32_t device) {
  return bitimpl_cuda_linear_workspace(weight, rows, activation, device);
}

int bitimpl_cuda_linear(const bitimpl_linear_call* call, int32_t device, void* stream) {
  clear_error();
  if (call == nullptr) return fail(BITIMPL_INVALID_ARGUMENT, "call is null: pass a bitimpl_linear_call");
  return run(*call, nullptr, device, stream);
}

int bitimpl_cuda_linear_signs(const bitimpl_linear_call* call, const bitimpl_signs* signs, int32_t device,
                              void* stream) {
  clear_error();
  if (call == nullptr) return fail(BITIMPL_INVALID_ARGUMENT, "call is null: pass a bitimpl_linear_call");
  const int status = check_signs(signs, "linear", call->x.dtype == BITIMPL_SIGNS, call->y.dtype == BITIMPL_SIGNS,
                                 call->x.rows, call->activation);
  return status == BITIMPL_OK ? run(*call, signs, device, stream) : status;
}

}  // extern "C"
