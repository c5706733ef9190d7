// The entry points of the linear operators: every argument is checked here, a kernel is chosen, the workspace
// is divided and the activations are prepared. Binary weights with signs for activations, ternary ones with ternary
// activations, are products of bits where a kernel of those serves. Binary weights with other activations meet few
// tokens as they lie; for more, their bits become codes of two_bit first, for the kernels of bytes.
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

// The same of binary weights as they lie.
const LinearKernel* const kBinaryKernels[] = {&kBinaryGemv, &kBinaryFloat};

const char* const kQuery = "bitimpl_cuda_linear_workspace";

const char* const kSignsQuery = "bitimpl_cuda_linear_signs_workspace";

// How a call is served: by one of the two.
struct Service {
  const BitKernel* bits;
  const LinearKernel* bytes;
  bool spreads;  // binary weights become codes of two_bit
};

bool may_be_bits(const bitimpl_weight& weight, int32_t activation) {
  if (weight.format == BITIMPL_BINARY) return activation == BITIMPL_ACTIVATION_SIGN;
  return activation == BITIMPL_ACTIVATION_TERNARY;
}

// The task of a call on bytes, without memory.
LinearTask describe_call(const bitimpl_weight& weight, int64_t rows, int32_t activation, bool spreads) {
  bitimpl_weight bytes = weight;
  if (spreads) bytes.format = BITIMPL_TWO_BIT;
  LinearTask task = {};
  task.weight = describe(bytes);
  task.source.activation = activation;
  task.x.rows = rows;
  task.x.planes = activation == BITIMPL_ACTIVATION_FLOAT ? 0 : activation == BITIMPL_ACTIVATION_INT16 ? 2 : 1;
  task.x.row_bytes = int64_t{kStep} * task.weight.steps;
  return task;
}

// BITIMPL_OK, or fail(...).
int choose_service(const bitimpl_weight& weight, int64_t rows, int32_t activation, const Device& device,
                   Service* service) {
  const bool binary = weight.format == BITIMPL_BINARY;
  const char* reason = nullptr;
  const auto note = [&](const char* why) {
    if (reason == nullptr || strcmp(reason, kNoPart) == 0) reason = why;
  };
  const char* why = nullptr;
  *service = {};
  if (may_be_bits(weight, activation)) {
    service->bits = choose_bits(describe_bits(weight, rows), device, &why);
    if (service->bits != nullptr) return BITIMPL_OK;
    note(why);
  }
  if (binary) {
    service->bytes = choose(kBinaryKernels, describe_call(weight, rows, activation, false), device, &why);
    if (service->bytes != nullptr) return BITIMPL_OK;
    note(why);
  }
  service->spreads = binary;
  service->bytes = choose(kKernels, describe_call(weight, rows, activation, binary), device, &why);
  if (service->bytes != nullptr) return BITIMPL_OK;
  note(why);
  return fail_choice(weight.format, activation, reason);
}

// Gives the task its memory; returns the kernel's scratch. y_signs: y is to be floats first, of which signs are made.
void* divide(LinearTask* task, const Service& service, bool y_signs, const Device& device, Divider* memory) {
  Tokens& x = task->x;
  const Weight& w = task->weight;
  if (service.spreads) task->weight.codes = memory->take<uint8_t>(w.components * w.groups * w.cols);
  if (!service.bytes->quantises(*task, device)) {
    for (int plane = 0; plane < x.planes; ++plane) {
      x.q[plane] = memory->take<int8_t>(x.rows * x.row_bytes);
      x.sums[plane] = memory->take<int32_t>(x.rows * w.segments);
    }
    if (x.planes > 0) x.scale = memory->take<float>(x.rows);
  }
  if (y_signs) {
    Result& r = task->result;
    r.row_stride = (w.rows + 3) / 4 * 4;
    r.dtype = BITIMPL_F32;
    r.y = memory->take<float>(x.rows * r.row_stride);
  }
  // The last part: its size matters only where sizes are counted.
  return memory->take<char>(memory->counts() ? service.bytes->scratch(*task, device) : 0);
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

int run_on_bytes(const bitimpl_linear_call& call, const bitimpl_signs* signs, const Service& service,
                 const Device& device, Stream stream) {
  const LinearKernel& kernel = *service.bytes;
  const bool y_signs = call.y.dtype == BITIMPL_SIGNS;
  LinearTask task = describe_call(*call.weight, call.x.rows, call.activation, service.spreads);
  LinearTask sized = task;
  Divider sizes = {nullptr};
  divide(&sized, service, y_signs, device, &sizes);
  const char* query = signs == nullptr ? kQuery : kSignsQuery;
  char* base = aligned_workspace(call.workspace, call.workspace_bytes, sizes.used, query);
  if (base == nullptr && sizes.used > 0) return last_status();
  task.source = {call.x.data, call.x.row_stride, call.x.dtype, call.activation};
  if (call.x.dtype == BITIMPL_SIGNS) task.source.scale = signs->x_scale;
  task.result = {call.y.data, call.bias, call.y.row_stride, call.y.dtype, call.bias_dtype};
  Divider memory = {base};
  void* scratch = base == nullptr ? nullptr : divide(&task, service, y_signs, device, &memory);

  const DeviceGuard current(device.index);
  int status = service.spreads ? spread_bits(call.weight->codes, task.weight, stream) : BITIMPL_OK;
  if (status == BITIMPL_OK && !kernel.quantises(task, device) && task.x.planes > 0) status = quantize(task, stream);
  if (status == BITIMPL_OK) status = kernel.run(task, device, stream, scratch);
  if (status != BITIMPL_OK || !y_signs) return status;
  return write_signs(task.result, call.y.rows, call.y.cols, call.y, *signs, stream);
}

int run_on_bits(const bitimpl_linear_call& call, const bitimpl_signs* signs, const BitKernel& kernel,
                const Device& device, Stream stream) {
  BitTask task = describe_bits(*call.weight, call.x.rows);
  task.source = {call.x.data, signs == nullptr ? nullptr : signs->x_scale, call.x.dtype, call.x.row_stride, 1, {}};
  task.result = {call.y.data, call.bias, call.y.dtype, call.bias_dtype, call.y.row_stride, 1, {}, {}};
  if (call.y.dtype == BITIMPL_SIGNS) task.result.signs = *signs;
  const char* query = signs == nullptr ? kQuery : kSignsQuery;
  return run_bits({task, call.workspace, call.workspace_bytes, query}, kernel, device, stream);
}

// `signs`: null where neither x nor y may be of signs.
int run(const bitimpl_linear_call& call, const bitimpl_signs* signs, int32_t index, Stream stream) {
  int status = check_call(call, signs);
  if (status != BITIMPL_OK) return status;
  const Device* device = device_at(index);
  if (device == nullptr) return last_status();
  const bitimpl_weight& weight = *call.weight;
  Service service;
  status = choose_service(weight, call.x.rows, call.activation, *device, &service);
  if (status != BITIMPL_OK) return status;
  note_served(operation_of(weight.format), weight.format, call.activation,
              service.bits != nullptr ? service.bits->name : service.bytes->name, *device);
  if (call.x.rows == 0) return BITIMPL_OK;
  if (service.bits == nullptr) return run_on_bytes(call, signs, service, *device, stream);
  return run_on_bits(call, signs, *service.bits, *device, stream);
}

// Bytes, or -1 after fail(...). y_signs: whether y may be of signs.
int64_t workspace_of(const bitimpl_weight* weight, int64_t rows, int32_t activation, bool y_signs, int32_t device) {
  clear_error();
  if (check_weight(weight, false) != BITIMPL_OK) return -1;
  if (check_operator(operator_of(weight->format), "linear", *weight, activation) != BITIMPL_OK) return -1;
  if (check_tokens(*weight, rows) != BITIMPL_OK) return -1;
  const Device* found = device_at(device);
  if (found == nullptr) return -1;
  Service service;
  if (choose_service(*weight, rows, activation, *found, &service) != BITIMPL_OK) return -1;
  if (service.bits != nullptr) return bit_workspace(describe_bits(*weight, rows), *service.bits, *found);
  LinearTask task = describe_call(*weight, rows, activation, service.spreads);
  Divider sizes = {nullptr};
  divide(&task, service, y_signs, *found, &sizes);
  return workspace_for(sizes.used);
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int64_t bitimpl_cuda_linear_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation,
                                      int32_t device) {
  return workspace_of(weight, rows, activation, false, device);
}

int64_t bitimpl_cuda_linear_signs_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation,
                                            int32_t device) {
  return workspace_of(weight, rows, activation, true, device);
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
