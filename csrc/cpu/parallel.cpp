#include "parallel.h"

#include <omp.h>
#include <time.h>

#include <algorithm>
#include <atomic>

#include "parallel_account.h"

namespace bitimpl {
namespace {

// A fork and join of a warm pool costs about 6 us; one core does this many int8
// multiply-accumulates in 11 us, so that a second thread just pays off at 2048 x 2048 and M = 1 with
// weights in the cache, and well from memory.
constexpr double kWorkPerThread = 2e6;

constexpr int kMaxThreads = 256;
// Into how many pieces a thread's share is cut, so that others can take some over; each costs a call
// that begins anew, so that short ones are not worth it.
constexpr double kMostPieces = 4;
constexpr double kWorkPerPiece = 1e6;

int64_t nanoseconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return int64_t{1'000'000'000} * t.tv_sec + t.tv_nsec;
}

int64_t now() { return nanoseconds(CLOCK_MONOTONIC); }

Account account;

// What is left of one thread's part of the ranges, and how long a watched thread was on a core
// for any part; a cache line of its own.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
  int64_t piece;
  int64_t worked;
};

struct Region {
  Share shares[kMaxThreads];
  int threads;
  bool watched;
  RangeBody body;
  void* context;

  // Does the thread's own share, then what others have not begun.
  void work_as(int thread) {
    const int64_t begun = watched ? nanoseconds(CLOCK_THREAD_CPUTIME_ID) : 0;
    for (int i = 0; i < threads; ++i) {
      Share& share = shares[(thread + i) % threads];
      for (;;) {
        const int64_t begin = share.next.fetch_add(share.piece, std::memory_order_relaxed);
        if (begin >= share.end) break;
        const int64_t end = std::min(begin + share.piece, share.end);
        body(context, thread, begin, end);
      }
    }
    if (watched) shares[thread].worked = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - begun;
  }
};

}  // namespace

int available_threads() {
  return omp_in_parallel() ? 1 : std::min(omp_get_max_threads(), kMaxThreads);
}

void parallel_ranges(int64_t count, int64_t grain, double work, int threads, RangeBody body,
                     void* context) {
  const double useful = work / kWorkPerThread;
  if (useful < threads) threads = static_cast<int>(useful);
  if (count < threads) threads = static_cast<int>(count);
  if (count <= 0) return;
  const int64_t begun = threads > 1 ? now() : 0;
  if (threads <= 1 || !account.regions_pay(begun)) {
    body(context, 0, 0, count);
    return;
  }

  Region region;
  region.threads = threads;
  region.watched = account.watches();
  region.body = body;
  region.context = context;
  const auto pieces = static_cast<int64_t>(std::clamp(work / threads / kWorkPerPiece, 1.0, kMostPieces));
  for (int64_t i = 0; i < threads; ++i) {
    const int64_t begin = count * i / threads;
    Share& share = region.shares[i];
    share.next.store(begin, std::memory_order_relaxed);
    share.end = count * (i + 1) / threads;
    share.worked = 0;  // fewer threads may come than were asked for
    share.piece = ((share.end - begin) / pieces + grain) / grain * grain;
  }
  // The whole pool, though some of it may find nothing to do: a smaller team would end the threads
  // beyond it, and the next full one, ours or torch's, would have to create them again.
#pragma omp parallel num_threads(available_threads())
  {
    const int thread = omp_get_thread_num();
    if (thread < threads) region.work_as(thread);
  }
  const int64_t ended = now();
  if (!region.watched) {
    account.enter(ended - begun);
    return;
  }
  int64_t alone = 0;
  for (int i = 0; i < threads; ++i) alone += region.shares[i].worked;
  account.enter(ended, ended - begun, alone);
}

}  // namespace bitimpl
