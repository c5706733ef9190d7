// The devices that the emulator stands for, and the entry points that only its library has.
#include <string.h>

#include "../common/error.h"
#include "../cuda/runtime.h"
#include "emulator.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kDevices = 2;
Device devices[kDevices] = {{0, 80, 3, 163 * 1024}, {1, 80, 5, 163 * 1024}};
thread_local int current = 0;

}  // namespace

int toolkit() { return 0; }
const char* architectures() { return "emulated"; }

int count_devices() { return kDevices; }

const Device* device_at(int index) {
  if (index >= 0 && index < kDevices) return &devices[index];
  fail(BITIMPL_INVALID_ARGUMENT, "device %d: there are %d, counted from 0", index, kDevices);
  return nullptr;
}

DeviceGuard::DeviceGuard(int index) : before_(current) { current = index; }
DeviceGuard::~DeviceGuard() { current = before_; }

}  // namespace cuda
}  // namespace bitimpl

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// What device `index` (0 or 1) is from now on.
EXPORT void bitimpl_emulate_device(int index, int architecture, int multiprocessors) {
  bitimpl::cuda::devices[index].architecture = architecture;
  bitimpl::cuda::devices[index].multiprocessors = multiprocessors;
}

// The seed of the order in which threads and blocks run.
EXPORT void bitimpl_emulate_order(uint64_t seed) { bitimpl::emulator::shuffle(seed); }

}  // extern "C"
