#include "choice.h"

#include <stdio.h>

#include <atomic>

#include "../common/checks.h"
#include "../cutlass/contraction.h"
#include "../include/impl_cuda.h"

namespace bitimpl {
namespace cuda {
namespace {

// Every kernel that is compiled in; a name can stand in several tables.
const char* const kNames[] = {
#ifdef BITIMPL_HAS_SM90A
    "wgmma", "bgmma",
#endif
#ifdef BITIMPL_HAS_CUTLASS
    "cutlass",
#endif
    "bmma", "gemm", "small_batch", "gemv", "popcount", "binary_gemv", "float", "any"};

thread_local const char* selected = nullptr;
thread_local const char* preferred = nullptr;

// Bits of places in kNames: kernels left out of the choice on each device, kernels that need proof and have it.
std::atomic<uint64_t> avoided[kMostDevices] = {};
std::atomic<uint64_t> trusted = {};

// What served the thread's last operator call; put into words only when asked.
struct Served {
  const char* operation;
  int32_t format;
  int32_t activation;
  const char* kernel;
  int architecture;
};
thread_local Served served = {};
thread_local char served_name[96] = "";

// The place of the kernel of that name in kNames, or -1 after fail(...).
int place_of(const char* name) {
  int place = 0;
  for (const char* known : kNames) {
    if (name != nullptr && strcmp(known, name) == 0) return place;
    ++place;
  }
  fail(BITIMPL_INVALID_ARGUMENT, "there is no CUDA kernel \"%s\": choose one of %s", name == nullptr ? "" : name,
       bitimpl_cuda_kernels());
  return -1;
}

// The thread's choice of that name; null or "": none.
int name_kernel(const char* name, const char** choice) {
  clear_error();
  if (name == nullptr || name[0] == '\0') {
    *choice = nullptr;
    return BITIMPL_OK;
  }
  const int place = place_of(name);
  if (place < 0) return last_status();
  *choice = kNames[place];
  return BITIMPL_OK;
}

}  // namespace

const char* selected_kernel() { return selected; }
const char* preferred_kernel() { return preferred; }

bool may_choose(const char* name, bool needs_proof, const Device& device) {
  const uint64_t bit = uint64_t{1} << place_of(name);
  return (avoided[device.index].load(std::memory_order_relaxed) & bit) == 0 &&
         (!needs_proof || (trusted.load(std::memory_order_relaxed) & bit) != 0);
}

void note_served(const char* operation, int32_t format, int32_t activation, const char* kernel, const Device& device) {
  served = {operation, format, activation, kernel, device.architecture};
}

int fail_choice(int32_t format, int32_t activation, const char* why) {
  if (why != nullptr) {
    return fail(BITIMPL_UNSUPPORTED, "kernel %s was chosen, but %s: choose another, or none", selected, why);
  }
  return fail(BITIMPL_UNSUPPORTED,
              "no CUDA kernel takes %s weights with %s activations here: use the torch reference "
              "(BITIMPL_BACKEND=torch)",
              name_of_format(format), name_of_activation(activation));
}

}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int bitimpl_cuda_abi_version(void) { return BITIMPL_CUDA_ABI_VERSION; }

int bitimpl_cuda_toolkit(void) { return toolkit(); }
const char* bitimpl_cuda_architectures(void) { return architectures(); }
const char* bitimpl_cuda_cutlass(void) {
#ifdef BITIMPL_HAS_CUTLASS
  return cutlass_version();
#else
  return "";
#endif
}

const char* bitimpl_cuda_kernels(void) {
  static thread_local char names[192];
  size_t used = 0;
  for (const char* name : kNames) {
    used += static_cast<size_t>(snprintf(names + used, sizeof names - used, "%s%s", used == 0 ? "" : ",", name));
  }
  return names;
}

int bitimpl_cuda_select_kernel(const char* name) { return name_kernel(name, &selected); }
int bitimpl_cuda_prefer_kernel(const char* name) { return name_kernel(name, &preferred); }

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
  snprintf(served_name, sizeof served_name, "%s/%s/%s/%s/sm_%d", served.operation, name_of_format(served.format),
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

}  // extern "C"
