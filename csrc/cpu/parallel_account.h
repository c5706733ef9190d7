// Whether it pays to share work among threads, judged by how it went so far; part of parallel.cpp.
#ifndef BITIMPL_CPU_PARALLEL_ACCOUNT_H
#define BITIMPL_CPU_PARALLEL_ACCOUNT_H

#include <stdint.h>

#include <algorithm>
#include <atomic>

namespace bitimpl {

// Times are in nanoseconds. What a region saved against the calling thread alone is credit; what
// one lost, because threads came late, is taken from it. Where no credit covers a loss, work stays
// on the calling thread for kPause times the loss: a machine that stalls every region then costs
// 1 / kPause more than a single thread, and a lone stall nothing.
//
// Callers race for the account: an update lost among them does no harm.
class Account {
 public:
  bool regions_pay(int64_t at) const { return at >= serial_until_.load(std::memory_order_relaxed); }

  // Whether the next region is to say how long its threads worked. Asking the system costs a
  // microsecond: it is asked for a while after a region that was long enough to have stalled.
  bool watches() const { return watched_.load(std::memory_order_relaxed) > 0; }

  // A region that was not watched took `seen`.
  void enter(int64_t seen) {
    if (seen >= kStall) watched_.store(kWatched, std::memory_order_relaxed);
  }

  // A watched region ended at `at` and took `seen`; its threads worked for `alone` in all, waiting
  // for a core not counted, and so long the calling thread alone would have taken.
  void enter(int64_t at, int64_t seen, int64_t alone) {
    const int64_t left = seen >= kStall ? kWatched : watched_.load(std::memory_order_relaxed) - 1;
    watched_.store(left, std::memory_order_relaxed);
    const int64_t balance = credit_.load(std::memory_order_relaxed) + alone - seen;
    credit_.store(std::clamp<int64_t>(balance, 0, kMostCredit), std::memory_order_relaxed);
    if (balance >= 0) return;
    const int64_t pause = std::min(kPause * -balance, kLongestPause);
    serial_until_.store(at + pause, std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kStall = 1'000'000;  // less than any time slice
  static constexpr int64_t kWatched = 64;
  static constexpr int64_t kPause = 16;
  static constexpr int64_t kMostCredit = 20'000'000;     // some two to five lost time slices
  static constexpr int64_t kLongestPause = 200'000'000;  // also after the process was stopped

  std::atomic<int64_t> watched_{0};
  std::atomic<int64_t> credit_{0};
  std::atomic<int64_t> serial_until_{0};
};

}  // namespace bitimpl

#endif  // BITIMPL_CPU_PARALLEL_ACCOUNT_H
