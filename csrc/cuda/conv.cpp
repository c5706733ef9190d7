// The entry points of convolutions: every argument is checked here, and handed to the products of bits or of bytes.
#include "../common/checks.h"
#include "../common/conv_checks.h"
#include "../include/impl_cuda.h"
#include "bit_kernels.h"
#include "choice.h"
#include "conv_bytes.h"

namespace bitimpl {
namespace cuda {
namespace {

const char* const kQuery = "bitimpl_cuda_conv_workspace";

const char* operation_of(int32_t format) { return format == BITIMPL_BINARY ? "binary_conv" : "ternary_conv"; }

// What a call's sizes and types say, but for memory.
int check_sizes(const bitimpl_cuda_conv_call* call, bool with_scales, ConvSizes* sizes) {
  if (call == nullptr) return fail(BITIMPL_INVALID_ARGUMENT, "call is null: pass a bitimpl_cuda_conv_call");
  int status = check_weight(call->weight, with_scales);
  if (status != BITIMPL_OK) return status;
  const bitimpl_weight& weight = *call->weight;
  status = check_operator(operator_of(weight.format), "conv", weight, call->activation);
  if (status == BITIMPL_OK) status = check_conv(weight, call->conv, &call->x, call->activation, sizes);
  return status == BITIMPL_OK ? check_conv_output(weight, call->x, *sizes, &call->y) : status;
}

int check_call(const bitimpl_cuda_conv_call* call, ConvSizes* sizes) {
  int status = check_sizes(call, true, sizes);
  if (status != BITIMPL_OK) return status;
  const bool x_signs = call->x.dtype == BITIMPL_SIGNS;
  const bool y_signs = call->y.dtype == BITIMPL_SIGNS;
  if (x_signs || y_signs) {
    status = check_signs(call->signs, "conv", x_signs, y_signs, call->x.samples, call->activation);
  }
  if (status == BITIMPL_OK) status = check_image_data(call->x, "x");
  if (status == BITIMPL_OK) status = check_image_data(call->y, "y");
  return status == BITIMPL_OK ? check_bias(call->bias, call->bias_dtype) : status;
}

// How a call is served: by one of the two.
struct Service {
  const BitKernel* bits;
  ByteService bytes;
};

// What a call says, without the memory of its workspace.
struct Task {
  BitTask bits;
  ByteConv bytes;
};

Task describe_call(const bitimpl_cuda_conv_call& call) {
  const bitimpl_image& x = call.x;
  const bitimpl_image& y = call.y;
  Task task;
  task.bits = describe_bits(*call.weight, *call.conv, x);
  task.bits.source = {x.data, nullptr, x.dtype, x.sample_stride, x.channel_stride,
                      {x.spatial_stride[0], x.spatial_stride[1], x.spatial_stride[2]}};
  task.bits.result = {y.data, call.bias, y.dtype, call.bias_dtype, y.sample_stride, y.channel_stride,
                      {y.spatial_stride[0], y.spatial_stride[1], y.spatial_stride[2]}, {}};
  if (x.dtype == BITIMPL_SIGNS && call.signs != nullptr) task.bits.source.scale = call.signs->x_scale;
  if (y.dtype == BITIMPL_SIGNS && call.signs != nullptr) task.bits.result.signs = *call.signs;
  task.bytes = describe_bytes(task.bits, call.activation);
  return task;
}

// Signs of single channels fill a bit of a word each: by the library's own choice they are bytes.
bool may_be_bits(const bitimpl_cuda_conv_call& call, const BitTask& task) {
  if (call.weight->format != BITIMPL_BINARY || call.activation != BITIMPL_ACTIVATION_SIGN) return false;
  return task.groups == 1 || task.group_channels > 1 || selected_kernel() != nullptr;
}

// BITIMPL_OK, or fail(...).
int choose_service(const bitimpl_cuda_conv_call& call, const Task& task, const Device& device, Service* service) {
  const char* why = nullptr;
  *service = {};
  if (may_be_bits(call, task.bits)) service->bits = choose_bits(task.bits, device, &why);
  if (service->bits != nullptr || choose_bytes(task.bytes, device, &service->bytes, &why)) return BITIMPL_OK;
  return fail_choice(call.weight->format, call.activation, why);
}

int run(const bitimpl_cuda_conv_call& call, const Device& device, Stream stream) {
  const int32_t format = call.weight->format;
  const Task task = describe_call(call);
  Service service;
  const int status = choose_service(call, task, device, &service);
  if (status != BITIMPL_OK) return status;
  note_served(operation_of(format), format, call.activation,
              service.bits != nullptr ? service.bits->name : service.bytes.name, device);
  if (call.x.samples == 0) return BITIMPL_OK;
  if (service.bits != nullptr) {
    return run_bits({task.bits, call.workspace, call.workspace_bytes, kQuery}, *service.bits, device, stream);
  }
  return run_bytes({task.bytes, call.workspace, call.workspace_bytes, kQuery}, service.bytes, device, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int64_t bitimpl_cuda_conv_workspace(const bitimpl_cuda_conv_call* call, int32_t device) {
  clear_error();
  ConvSizes sizes;
  if (check_sizes(call, false, &sizes) != BITIMPL_OK) return -1;
  const Device* found = device_at(device);
  if (found == nullptr) return -1;
  const Task task = describe_call(*call);
  Service service;
  if (choose_service(*call, task, *found, &service) != BITIMPL_OK) return -1;
  if (service.bits != nullptr) return bit_workspace(task.bits, *service.bits, *found);
  return byte_workspace(task.bytes, service.bytes, *found);
}

int bitimpl_cuda_conv(const bitimpl_cuda_conv_call* call, int32_t device, void* stream) {
  clear_error();
  ConvSizes sizes;
  const int status = check_call(call, &sizes);
  if (status != BITIMPL_OK) return status;
  const Device* found = device_at(device);
  return found == nullptr ? last_status() : run(*call, *found, stream);
}

}  // extern "C"
