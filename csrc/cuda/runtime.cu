#include "runtime.h"

#include <cuda_runtime.h>

#include <mutex>

#include "../common/error.h"
#include "architectures.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kMostDevices = 64;
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

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

int check_launch() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? BITIMPL_OK : failed(error, "a kernel could not be started");
}

int fill_zero(void* data, size_t bytes, Stream stream) {
  const cudaError_t error = cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? BITIMPL_OK : failed(error, "memory could not be cleared");
}

}  // namespace cuda
}  // namespace bitimpl
