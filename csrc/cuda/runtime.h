// What the host side asks of a device: runtime.cu answers for GPUs, emulator/devices.cpp for the emulator.
#ifndef BITIMPL_CUDA_RUNTIME_H
#define BITIMPL_CUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

namespace bitimpl {
namespace cuda {

using Stream = void*;  // cudaStream_t

// What was built: the toolkit (1000 * major + 10 * minor, 0 for the emulator) and the architectures.
int toolkit();
const char* architectures();

constexpr int kMostDevices = 64;

struct Device {
  int index;
  int architecture;     // 10 * major + minor: 80, 86, 89, 90
  int multiprocessors;
  size_t shared_bytes;  // that one block can have
};

// The device of that index, or null after fail(...): no such device, no driver, a driver older than this
// build, an architecture it holds no code for. Asked of the driver once.
const Device* device_at(int index);

// Number of devices, or -1 after fail(...).
int count_devices();

// Makes a device the current one of this thread while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

// BITIMPL_OK, or fail(...) with the error of the launch just made. Waits for nothing.
int check_launch();


}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_RUNTIME_H
