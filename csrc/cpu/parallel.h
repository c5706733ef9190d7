// All threading of the library: the OpenMP pool of the process, which is torch's where torch was
// loaded first.
#ifndef BITIMPL_CPU_PARALLEL_H
#define BITIMPL_CPU_PARALLEL_H

#include <stdint.h>

namespace bitimpl {

// Threads a parallel region started here would get: 1 inside another parallel region.
int available_threads();

// Calls body(context, thread, begin, end) on disjoint ranges that cover [0, count),
// thread < threads; a thread may be called for several ranges, one after the other, each a multiple of
// `grain` (but for the last of a thread's share). `work` estimates the whole in
// multiply-accumulates: where waking the pool would cost more than it saves, everything runs on the
// calling thread.
//
// On a machine whose cores are taken by others a region can last for milliseconds, until its last
// thread was given a core. Two things keep that bounded: threads that are there take over the
// ranges of those that are late, and regions are used only while they pay (parallel_account.h).
using RangeBody = void (*)(void* context, int thread, int64_t begin, int64_t end);
void parallel_ranges(int64_t count, int64_t grain, double work, int threads, RangeBody body,
                     void* context);

}  // namespace bitimpl

#endif  // BITIMPL_CPU_PARALLEL_H
