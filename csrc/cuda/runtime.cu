#include "runtime.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <mutex>

#include "../common/error.h"
#include "architectures.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kLeastArchitecture = 80;

int failed(cudaError_t error, const char* what) {
  return fail(BITIMPL_UNSUPPORTED, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

struct Known {
  std::mutex mutex;
  bool asked[kMostDevices] = {};
  Device device[kMostDevices] = {};
};

Known& known() {
  static Known one;
  return one;
}

// By the driver's own function: the runtime has none that does not make the context it asks for.
bool has_context(int index) {
  using Query = int (*)(int device, unsigned* flags, int* active);
  static const Query query = [] {
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    return driver == nullptr ? nullptr : reinterpret_cast<Query>(dlsym(driver, "cuDevicePrimaryCtxGetState"));
  }();
  unsigned flags = 0;
  int active = 0;
  return query == nullptr || (query(index, &flags, &active) == 0 && active != 0);
}

int ask(cudaDeviceAttr attribute, int index) {
  int value = 0;
  cudaDeviceGetAttribute(&value, attribute, index);
  return value;
}

}  // namespace

int toolkit() { return CUDART_VERSION; }
const char* architectures() { return BITIMPL_CUDA_ARCHITECTURES; }

int count_devices() {
  int driver = 0;
  int built_with = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&built_with);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess && driver == 0) {
    fail(BITIMPL_UNSUPPORTED, "there is no NVIDIA driver: install one, or use the torch reference "
         "(BITIMPL_BACKEND=torch)");
    return -1;
  }
  if (error == cudaErrorInsufficientDriver) {
    fail(BITIMPL_UNSUPPORTED,
         "the driver speaks CUDA %d.%d, this library was built with CUDA %d.%d: update the driver, or build "
         "with an older CUDA", driver / 1000, driver / 10 % 100, built_with / 1000, built_with / 10 % 100);
    return -1;
  }
  if (error != cudaSuccess) {
    failed(error, "no CUDA device can be used");
    return -1;
  }
  return count;
}

const Device* device_at(int index) {
  Known& k = known();
  const std::lock_guard<std::mutex> lock(k.mutex);
  if (index >= 0 && index < kMostDevices && k.asked[index]) return &k.device[index];
  const int count = count_devices();
  if (count < 0) return nullptr;
  if (index < 0 || index >= count || index >= kMostDevices) {
    fail(BITIMPL_INVALID_ARGUMENT, "device %d: there are %d, counted from 0", index, count);
    return nullptr;
  }
  Device& device = k.device[index];
  device.index = index;
  device.architecture =
      10 * ask(cudaDevAttrComputeCapabilityMajor, index) + ask(cudaDevAttrComputeCapabilityMinor, index);
  device.multiprocessors = ask(cudaDevAttrMultiProcessorCount, index);
  device.shared_bytes = static_cast<size_t>(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  if (device.architecture < kLeastArchitecture) {
    fail(BITIMPL_UNSUPPORTED, "device %d is of architecture %d.%d, these kernels need %d.%d or newer: use the "
         "torch reference on it (BITIMPL_BACKEND=torch)", index, device.architecture / 10,
         device.architecture % 10, kLeastArchitecture / 10, kLeastArchitecture % 10);
    return nullptr;
  }
  if (!has_code_for(architectures(), device.architecture)) {
    fail(BITIMPL_UNSUPPORTED, "device %d is of architecture %d.%d, this library was built for %s: build it on "
         "a machine with such a GPU, or for all of them (BITIMPL_CUDA=on)", index, device.architecture / 10,
         device.architecture % 10, architectures());
    return nullptr;
  }
  k.asked[index] = true;
  return &device;
}

DeviceGuard::DeviceGuard(int index) : before_(-1) {
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current != index) {
    before_ = current;
    cudaSetDevice(index);
  }
}

// To set a device is to make a context there: hundreds of megabytes, where none was wanted.
DeviceGuard::~DeviceGuard() {
  if (before_ >= 0 && has_context(before_)) cudaSetDevice(before_);
}

int check_launch() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? BITIMPL_OK : failed(error, "a kernel could not be started, or one before it failed (CUDA_LAUNCH_BLOCKING=1 shows which)");
}

}  // namespace cuda
}  // namespace bitimpl
