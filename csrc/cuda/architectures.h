// Which GPUs can run what a library was built for.
#ifndef BITIMPL_CUDA_ARCHITECTURES_H
#define BITIMPL_CUDA_ARCHITECTURES_H

#include <stdlib.h>

namespace bitimpl {
namespace cuda {

// Whether a GPU of `architecture` (10 * major + minor) runs code of the comma-separated `built`: 80
// serves 8.0 and what came later with the same major number, 90a serves 9.0 alone, 90+ptx everything from 9.0
// on.
inline bool has_code_for(const char* built, int architecture) {
  while (*built != '\0') {
    char* suffix;
    const int least = static_cast<int>(strtol(built, &suffix, 10));
    if (*suffix == 'a' ? architecture == least
                       : architecture >= least && (*suffix == '+' || architecture / 10 == least / 10)) {
      return true;
    }
    while (*suffix != '\0' && *suffix != ',') ++suffix;
    built = *suffix == ',' ? suffix + 1 : suffix;
  }
  return false;
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_ARCHITECTURES_H
