#include "parallel.h"

#include <omp.h>

namespace bitimpl {
namespace {

// A fork and join of a warm pool costs about 6 us (and milliseconds where other programs keep the
// cores busy); one core does this many int8 multiply-accumulates in 11 us, so that a second thread
// just pays off at 2048 x 2048 and M = 1 with weights in the cache, and well from memory.
constexpr double kWorkPerThread = 2e6;

}  // namespace

int available_threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

void parallel_ranges(int64_t count, double work, int threads, RangeBody body, void* context) {
  const double useful = work / kWorkPerThread;
  if (useful < threads) threads = static_cast<int>(useful);
  if (count < threads) threads = static_cast<int>(count);
  if (threads <= 1) {
    if (count > 0) body(context, 0, 0, count);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    // The runtime may grant fewer threads than asked for.
    const int64_t team = omp_get_num_threads();
    const int64_t thread = omp_get_thread_num();
    const int64_t begin = count * thread / team;
    const int64_t end = count * (thread + 1) / team;
    if (begin < end) body(context, static_cast<int>(thread), begin, end);
  }
}

}  // namespace bitimpl
