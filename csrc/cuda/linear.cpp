// The entry points of the linear operators: every argument is checked here, a kernel is chosen, the workspace
// is divided and the activations are prepared.
#include <stdio.h>
#include <string.h>

#include <atomic>

#include "../common/checks.h"
#include "../include/impl_cuda.h"
#include "kernels.h"
#include "weight.h"

namespace bitimpl {
namespace cuda {
namespace {

// In the order of preference.
const LinearKernel* const kKernels[] = {
#ifdef BITIMPL_HAS_SM90A
    &kWgmma,
#endif
    &kGemm, &kSmallBatch, &kGemv, &kFloat, &kAny};

constexpr int64_t kAlignment = 256;

thread_local const LinearKernel* selected = nullptr;

// Kernels left out of the choice on each device: the bits of their places in kKernels.
std::atomic<uint64_t> avoided[kMostDevices] = {};

// What served the thread's last operator call; put into words only when asked.
struct Served {
  int32_t format;
  int32_t activation;
  const char* kernel;
  int architecture;
};
thread_local Served served = {};
thread_local char served_name[96] = "";

// The task of a call, without memory.
LinearTask describe_call(const bitimpl_weight& weight, int64_t rows, int32_t activation) {
  LinearTask task = {};
  task.weight = describe(weight);
  task.source.activation = activation;
  task.x.rows = rows;
  task.x.planes = activation == BITIMPL_ACTIVATION_FLOAT ? 0 : activation == BITIMPL_ACTIVATION_INT16 ? 2 : 1;
  task.x.row_bytes = int64_t{kStep} * task.weight.steps;
  return task;
}

// Kernels that need proof and have it: the bits of their places in kKernels.
std::atomic<uint64_t> trusted = {};

// Null after fail(...).
const LinearKernel* choose(const LinearTask& task, const Device& device) {
  if (selected != nullptr) {
    const char* why = selected->refuses(task, device);
    if (why == nullptr) return selected;
    fail(BITIMPL_UNSUPPORTED, "kernel %s was chosen, but %s: choose another, or none", selected->name, why);
    return nullptr;
  }
  const uint64_t left_out = avoided[device.index].load(std::memory_order_relaxed);
  uint64_t bit = 1;
  for (const LinearKernel* kernel : kKernels) {
    const bool out = (left_out & bit) != 0 || (kernel->needs_proof && (trusted.load() & bit) == 0);
    bit <<= 1;
    if (!out && kernel->refuses(task, device) == nullptr && kernel->prefers(task, device)) return kernel;
  }
  fail(BITIMPL_UNSUPPORTED, "no CUDA kernel takes %s weights with %s activations here: use the torch reference (BITIMPL_BACKEND=torch)",
       name_of_format(task.weight.format), name_of_activation(task.source.activation));
  return nullptr;
}

// Divides memory into aligned parts; with null only counts.
struct Divider {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    const int64_t at = used;
    used += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return base == nullptr ? nullptr : reinterpret_cast<T*>(base + at);
  }
};

// Gives the task its memory; returns the kernel's scratch.
void* divide(LinearTask* task, const LinearKernel& kernel, const Device& device, Divider* memory) {
  Tokens& x = task->x;
  if (!kernel.quantises(*task, device)) {
    for (int plane = 0; plane < x.planes; ++plane) {
      x.q[plane] = memory->take<int8_t>(x.rows * x.row_bytes);
      x.sums[plane] = memory->take<int32_t>(x.rows * task->weight.segments);
    }
    if (x.planes > 0) x.scale = memory->take<float>(x.rows);
  }
  // The last part: its size matters only where sizes are counted.
  return memory->take<char>(memory->base == nullptr ? kernel.scratch(*task, device) : 0);
}

// The place of the kernel of that name in kKernels, or -1 after fail(...).
int place_of(const char* name) {
  int place = 0;
  for (const LinearKernel* kernel : kKernels) {
    if (name != nullptr && strcmp(kernel->name, name) == 0) return place;
    ++place;
  }
  fail(BITIMPL_INVALID_ARGUMENT, "there is no CUDA kernel \"%s\": choose one of %s", name == nullptr ? "" : name,
       bitimpl_cuda_kernels());
  return -1;
}

int check_call(const bitimpl_linear_call& call) {
  int status = check_weight(call.weight, true);
  if (status != BITIMPL_OK) return status;
  const bitimpl_weight& weight = *call.weight;
  status = check_format(weight.format);
  if (status == BITIMPL_OK) status = check_operator(operator_of(weight.format), "linear", weight, call.activation);
  if (status == BITIMPL_OK) status = check_matrix(&call.x, "x");
  if (status == BITIMPL_OK) status = check_matrix(&call.y, "y");
  if (status == BITIMPL_OK) status = check_tokens(weight, call.x.rows);
  if (status == BITIMPL_OK) status = check_shapes(weight, call.x, call.y);
  return status == BITIMPL_OK ? check_bias(call.bias, call.bias_dtype) : status;
}

int run(const bitimpl_linear_call& call, int32_t index, Stream stream) {
  const int status = check_call(call);
  if (status != BITIMPL_OK) return status;
  const Device* device = device_at(index);
  if (device == nullptr) return last_status();
  LinearTask task = describe_call(*call.weight, call.x.rows, call.activation);
  const LinearKernel* kernel = choose(task, *device);
  if (kernel == nullptr) return BITIMPL_UNSUPPORTED;
  served = {task.weight.format, call.activation, kernel->name, device->architecture};
  if (call.x.rows == 0) return BITIMPL_OK;

  Divider sizes = {nullptr};
  divide(&task, *kernel, *device, &sizes);
  const uintptr_t start = reinterpret_cast<uintptr_t>(call.workspace);
  const int64_t skipped = static_cast<int64_t>((kAlignment - start % kAlignment) % kAlignment);
  if (sizes.used > 0 && (call.workspace == nullptr || call.workspace_bytes < sizes.used + skipped)) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "workspace holds %lld bytes at %p, the call needs %lld: size it with bitimpl_cuda_linear_workspace",
                show(call.workspace_bytes), call.workspace, show(sizes.used + kAlignment - 1));
  }
  Divider memory = {static_cast<char*>(call.workspace) + skipped};
  void* scratch = divide(&task, *kernel, *device, &memory);
  task.source = {call.x.data, call.x.row_stride, call.x.dtype, call.activation};
  task.result = {call.y.data, call.bias, call.y.row_stride, call.y.dtype, call.bias_dtype};

  const DeviceGuard current(index);
  if (!kernel->quantises(task, *device) && task.x.planes > 0) {
    const int prepared = quantize(task, stream);
    if (prepared != BITIMPL_OK) return prepared;
  }
  return kernel->run(task, *device, stream, scratch);
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int bitimpl_cuda_abi_version(void) { return BITIMPL_CUDA_ABI_VERSION; }

int bitimpl_cuda_toolkit(void) { return toolkit(); }
const char* bitimpl_cuda_architectures(void) { return architectures(); }

const char* bitimpl_cuda_kernels(void) {
  static thread_local char names[128];
  size_t used = 0;
  for (const LinearKernel* kernel : kKernels) {
    used += static_cast<size_t>(
        snprintf(names + used, sizeof names - used, "%s%s", used == 0 ? "" : ",", kernel->name));
  }
  return names;
}

int bitimpl_cuda_select_kernel(const char* name) {
  clear_error();
  if (name == nullptr || name[0] == '\0') {
    selected = nullptr;
    return BITIMPL_OK;
  }
  const int place = place_of(name);
  if (place < 0) return last_status();
  selected = kKernels[place];
  return BITIMPL_OK;
}

int bitimpl_cuda_avoid(const char* name, int32_t device) {
  clear_error();
  const Device* found = device_at(device);
  if (found == nullptr) return last_status();
  const int place = place_of(name);
  if (place < 0) return last_status();
  avoided[found->index].fetch_or(uint64_t{1} << place);
  return BITIMPL_OK;
}

int bitimpl_cuda_trust(const char* name) {
  clear_error();
  const int place = place_of(name);
  if (place < 0) return last_status();
  trusted.fetch_or(uint64_t{1} << place);
  return BITIMPL_OK;
}

const char* bitimpl_cuda_last_kernel(void) {
  if (served.kernel == nullptr) return "";
  snprintf(served_name, sizeof served_name, "ternary_linear/%s/%s/%s/sm_%d", name_of_format(served.format),
           name_of_activation(served.activation), served.kernel, served.architecture);
  return served_name;
}

int bitimpl_cuda_devices(void) {
  clear_error();
  const int count = count_devices();
  return count < 0 ? 0 : count;
}

int bitimpl_cuda_describe(int32_t device, bitimpl_cuda_device* out) {
  clear_error();
  if (out == nullptr) return fail(BITIMPL_INVALID_ARGUMENT, "out is null: pass a bitimpl_cuda_device");
  const Device* found = device_at(device);
  if (found == nullptr) return last_status();
  *out = {found->architecture, found->multiprocessors, static_cast<int64_t>(found->shared_bytes)};
  return BITIMPL_OK;
}

int64_t bitimpl_cuda_linear_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation,
                                      int32_t device) {
  clear_error();
  if (check_weight(weight, false) != BITIMPL_OK || check_format(weight->format) != BITIMPL_OK) return -1;
  if (check_operator(operator_of(weight->format), "linear", *weight, activation) != BITIMPL_OK) return -1;
  if (check_tokens(*weight, rows) != BITIMPL_OK) return -1;
  const Device* found = device_at(device);
  if (found == nullptr) return -1;
  LinearTask task = describe_call(*weight, rows, activation);
  const LinearKernel* kernel = choose(task, *found);
  if (kernel == nullptr) return -1;
  Divider sizes = {nullptr};
  divide(&task, *kernel, *found, &sizes);
  return sizes.used == 0 ? 0 : sizes.used + kAlignment - 1;
}

int bitimpl_cuda_linear(const bitimpl_linear_call* call, int32_t device, void* stream) {
  clear_error();
  if (call == nullptr) return fail(BITIMPL_INVALID_ARGUMENT, "call is null: pass a bitimpl_linear_call");
  return run(*call, device, stream);
}

}  // extern "C"
