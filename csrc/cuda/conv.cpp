// The entry points of convolutions: every argument is checked here, and handed to the products of bits or of bytes.
#include "../common/checks.h"
#include "../common/conv_checks.h"
#include "../include/impl_cuda.h"
#include "bit_kernels.h"
#include "choice.h"
#include "weight.h"
#include "workspace.h"

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

bool may_be_bits(const bitimpl_cuda_conv_call& call) {
  return call.weight->format == BITIMPL_BINARY && call.activation == BITIMPL_ACTIVATION_SIGN;
}

int run(const bitimpl_cuda_conv_call& call, const Device& device, Stream stream) {
  const bitimpl_weight& weight = *call.weight;
  const char* why = nullptr;
  const BitKernel* kernel = nullptr;
  BitTask task = {};
  if (may_be_bits(call)) {
    task = describe_bits(weight, *call.conv, call.x);
    kernel = choose_bits(task, device, &why);
  }
  if (kernel == nullptr) return fail_choice(weight.format, call.activation, why);
  note_served(operation_of(weight.format), weight.format, call.activation, kernel->name, device);
  if (call.x.samples == 0) return BITIMPL_OK;
  const bitimpl_image& x = call.x;
  const bitimpl_image& y = call.y;
  task.source = {x.data, nullptr, x.dtype, x.sample_stride, x.channel_stride,
                 {x.spatial_stride[0], x.spatial_stride[1], x.spatial_stride[2]}};
  task.result = {y.data, call.bias, y.dtype, call.bias_dtype, y.sample_stride, y.channel_stride,
                 {y.spatial_stride[0], y.spatial_stride[1], y.spatial_stride[2]}, {}};
  if (x.dtype == BITIMPL_SIGNS) task.source.scale = call.signs->x_scale;
  if (y.dtype == BITIMPL_SIGNS) task.result.signs = *call.signs;
  return run_bits({task, call.workspace, call.workspace_bytes, kQuery}, *kernel, device, stream);
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
  const char* why = nullptr;
  const BitKernel* kernel = nullptr;
  BitTask task = {};
  if (may_be_bits(*call)) {
    task = describe_bits(*call->weight, *call->conv, call->x);
    kernel = choose_bits(task, *found, &why);
  }
  if (kernel != nullptr) return bit_workspace(task, *kernel, *found);
  fail_choice(call->weight->format, call->activation, why);
  return -1;
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
