// bitimpl_multiply_accumulate: nothing but arithmetic, the ruler for the peaks of the processor.
#include <atomic>

#include "../common/error.h"
#include "isa.h"
#include "kernels.h"
#include "parallel.h"

namespace bitimpl {
namespace {

struct Peak {
  int64_t (*loop)(int64_t turns);
  int64_t turns;
  std::atomic<int64_t> done;
};

void run_peak(void* context, int, int64_t begin, int64_t end) {
  auto* peak = static_cast<Peak*>(context);
  for (; begin < end; ++begin) {
    peak->done.fetch_add(peak->loop(peak->turns), std::memory_order_relaxed);
  }
}

}  // namespace
}  // namespace bitimpl

extern "C" int64_t bitimpl_multiply_accumulate(int32_t activation, int64_t turns) {
  using namespace bitimpl;
  clear_error();
  const KernelTable* kernels = active_kernels();
  if (kernels == nullptr) return -1;
  if ((activation != BITIMPL_ACTIVATION_INT8 && activation != BITIMPL_ACTIVATION_SIGN) || turns < 1) {
    fail(BITIMPL_INVALID_ARGUMENT, "activation is %d and turns %lld: use %d (sign) or %d (int8), and at least 1",
         activation, static_cast<long long>(turns), BITIMPL_ACTIVATION_SIGN, BITIMPL_ACTIVATION_INT8);
    return -1;
  }
  const int threads = available_threads();
  Peak peak = {activation == BITIMPL_ACTIVATION_INT8 ? kernels->int8_peak : kernels->sign_peak, turns, {0}};
  // A range for each thread there is; another does it where a thread is late or regions are paused.
  parallel_ranges(threads, 1, 1e18, threads, run_peak, &peak);
  return peak.done.load(std::memory_order_relaxed);
}
