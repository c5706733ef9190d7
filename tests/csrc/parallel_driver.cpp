// Checks csrc/cpu/parallel.*: every index once whatever the numbers, and the account's decisions on
// given times. Says what failed on standard error and exits with 1.
#include <omp.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "parallel.h"
#include "parallel_account.h"

namespace {

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

constexpr double kAlwaysShared = 1e18;

struct Visits {
  std::vector<std::atomic<int>> of_index;
  std::vector<std::atomic<int>> in_thread;  // calls a thread is in at once
  int64_t grain;
  std::atomic<int> short_calls{0}, strangers{0}, overlaps{0};

  Visits(int64_t count, int threads, int64_t grain)
      : of_index(count), in_thread(threads), grain(grain) {}
};

void visit(void* context, int thread, int64_t begin, int64_t end) {
  auto& visits = *static_cast<Visits*>(context);
  if (thread < 0 || thread >= static_cast<int>(visits.in_thread.size())) {
    ++visits.strangers;
    return;
  }
  if (visits.in_thread[thread].fetch_add(1) != 0) ++visits.overlaps;
  if (end - begin < visits.grain) ++visits.short_calls;
  for (int64_t i = begin; i < end; ++i) ++visits.of_index[i];
  --visits.in_thread[thread];
}

void check_cover(int64_t count, int64_t grain, int threads, double work) {
  Visits visits(count, threads, grain);
  bitimpl::parallel_ranges(count, grain, work, threads, visit, &visits);
  for (const auto& times : visits.of_index) expect(times == 1, "an index was not visited exactly once");
  expect(visits.strangers == 0, "a thread had a number outside [0, threads)");
  expect(visits.overlaps == 0, "two calls at once had the same thread number");
  expect(visits.short_calls <= threads, "more ranges below the grain than shares end");
}

void check_covers() {
  for (int pool : {1, 2, 3, 8}) {
    omp_set_num_threads(pool);
    for (int64_t count : {0, 1, 2, 7, 8, 63, 64, 1000, 4099})
      for (int64_t grain : {1, 3, 64, 5000})
        for (int threads : {1, 2, 3, 8})
          for (double work : {0.0, 5e6, kAlwaysShared}) check_cover(count, grain, threads, work);
  }
}

void check_nested() {
  omp_set_num_threads(4);
  std::atomic<int> wrong{0};
#pragma omp parallel num_threads(4)
  {
    if (bitimpl::available_threads() != 1) ++wrong;
    Visits visits(100, 1, 1);
    bitimpl::parallel_ranges(100, 1, kAlwaysShared, bitimpl::available_threads(), visit, &visits);
    for (const auto& times : visits.of_index) wrong += times != 1;
  }
  expect(wrong == 0, "a call inside a parallel region did not stay on its thread");
}

constexpr int64_t kMs = 1'000'000;

void check_account() {
  bitimpl::Account quiet;
  quiet.enter(kMs - 1);
  expect(!quiet.watches(), "a region shorter than a stall is watched");
  quiet.enter(kMs);
  expect(quiet.watches() && quiet.regions_pay(0), "a region as long as a stall is not watched, or counts");
  for (int i = 0; i < 64; ++i) {
    expect(quiet.watches(), "fewer than 64 regions are watched");
    quiet.enter(i * kMs, kMs / 4, kMs / 2);
  }
  expect(!quiet.watches(), "more than 64 regions are watched");

  bitimpl::Account fresh;
  expect(fresh.regions_pay(0), "a fresh account does not try a region");
  fresh.enter(10 * kMs, 2 * kMs, 1 * kMs);
  expect(!fresh.regions_pay(10 * kMs) && !fresh.regions_pay(26 * kMs - 1), "a loss without credit did not pause");
  expect(fresh.regions_pay(26 * kMs), "the pause is longer than 16 times the loss");

  bitimpl::Account rich;
  for (int i = 0; i < 100; ++i) rich.enter(i * kMs, kMs / 2, kMs);
  rich.enter(100 * kMs, 9 * kMs, kMs);
  expect(rich.regions_pay(100 * kMs), "a lone stall after many gains paused the regions");
  rich.enter(110 * kMs, 9 * kMs, kMs);
  rich.enter(120 * kMs, 9 * kMs, kMs);
  expect(!rich.regions_pay(120 * kMs), "stalls beyond the credit did not pause the regions");

  bitimpl::Account stopped;
  stopped.enter(0, 3'600'000 * kMs, kMs);
  expect(!stopped.regions_pay(199 * kMs) && stopped.regions_pay(200 * kMs),
         "an hour's stop did not pause for 200 ms");
}

}  // namespace

int main() {
  check_account();
  check_covers();
  check_nested();
  std::puts("ok");
}
