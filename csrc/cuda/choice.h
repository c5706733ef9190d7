// Which of the kernels that can serve a call does: names, the choice of a thread, kernels found wrong, kernels
// that want proof.
#ifndef BITIMPL_CUDA_CHOICE_H
#define BITIMPL_CUDA_CHOICE_H

#include <stddef.h>
#include <string.h>

#include "../common/error.h"
#include "runtime.h"

namespace bitimpl {
namespace cuda {

// The kernel this thread has chosen by name; null: none.
const char* selected_kernel();
// The kernel it wants tried before the library's own choice; null: none.
const char* preferred_kernel();
// Whether the library may choose a kernel by itself on the device.
bool may_choose(const char* name, bool needs_proof, const Device& device);
// What served the thread's last operator call, for bitimpl_cuda_last_kernel.
void note_served(const char* operation, int32_t format, int32_t activation, const char* kernel, const Device& device);

// What choose() says of a kernel that is chosen by name and not in its table.
constexpr char kNoPart[] = "it has no part in such calls";

// The kernel of `table` that serves the task: the one chosen by name, or the one preferred where it may be chosen
// and can, or the first that may be chosen, can and wants to. Null where there is none; `why` says what the one
// chosen by name refuses it for.
template <class Kernel, size_t COUNT, class Task>
const Kernel* choose(const Kernel* const (&table)[COUNT], const Task& task, const Device& device, const char** why) {
  const char* chosen = selected_kernel();
  *why = nullptr;
  for (const Kernel* kernel : table) {
    const char* preferred = chosen == nullptr ? preferred_kernel() : nullptr;
    if (preferred != nullptr && strcmp(kernel->name, preferred) == 0 &&
        may_choose(kernel->name, kernel->needs_proof, device) && kernel->refuses(task, device) == nullptr) {
      return kernel;
    }
  }
  for (const Kernel* kernel : table) {
    if (chosen != nullptr) {
      if (strcmp(kernel->name, chosen) != 0) continue;
      *why = kernel->refuses(task, device);
      return *why == nullptr ? kernel : nullptr;
    }
    if (may_choose(kernel->name, kernel->needs_proof, device) && kernel->refuses(task, device) == nullptr &&
        kernel->prefers(task, device)) {
      return kernel;
    }
  }
  if (chosen != nullptr) *why = kNoPart;
  return nullptr;
}

// fail(...) with what left a call without a kernel; `why` of choose().
int fail_choice(int32_t format, int32_t activation, const char* why);

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_CHOICE_H
