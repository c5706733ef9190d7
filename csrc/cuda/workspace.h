// How the caller's workspace becomes the memory of a call.
#ifndef BITIMPL_CUDA_WORKSPACE_H
#define BITIMPL_CUDA_WORKSPACE_H

#include <stdint.h>

#include "../common/checks.h"
#include "../common/error.h"

namespace bitimpl {
namespace cuda {

constexpr int64_t kWorkspaceAlignment = 256;

// Divides memory into aligned parts; with null only counts.
struct Divider {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    const int64_t at = used;
    used += (count * static_cast<int64_t>(sizeof(T)) + kWorkspaceAlignment - 1) / kWorkspaceAlignment *
            kWorkspaceAlignment;
    return base == nullptr ? nullptr : reinterpret_cast<T*>(base + at);
  }
  bool counts() const { return base == nullptr; }
};

// Bytes to ask the caller for, whose memory may begin anywhere.
inline int64_t workspace_for(int64_t used) { return used == 0 ? 0 : used + kWorkspaceAlignment - 1; }

// The aligned beginning of a workspace that holds `used` bytes from there on; null after fail(...), or where none
// are needed. `query`: the function that sizes it.
inline char* aligned_workspace(void* workspace, int64_t bytes, int64_t used, const char* query) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(workspace);
  const int64_t skipped = static_cast<int64_t>(
      (kWorkspaceAlignment - start % kWorkspaceAlignment) % kWorkspaceAlignment);
  if (used == 0) return nullptr;
  if (workspace == nullptr || bytes < used + skipped) {
    fail(BITIMPL_INVALID_ARGUMENT, "workspace holds %lld bytes at %p, the call needs %lld: size it with %s",
         show(bytes), workspace, show(workspace_for(used)), query);
    return nullptr;
  }
  return static_cast<char*>(workspace) + skipped;
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_WORKSPACE_H
