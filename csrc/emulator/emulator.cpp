#include "emulator.h"

#include <stdio.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "fiber.h"

namespace bitimpl {
namespace emulator {

const Place* here = nullptr;

namespace {

constexpr uint32_t kMostThreads = 1024;
constexpr size_t kMostShared = 227 * 1024;  // what a block of sm_90 can have; sm_80: 163 KiB

constexpr uint32_t kMostRank = 1u << 30;

enum class State { kReady, kAtBarrier, kInWarp, kEnded };

struct Copy {
  void* to;
  const void* from;
  int valid;  // below 0: the end of a group
};

struct Thread {
  Fiber fiber;
  Place place;
  State state;
  Together together;
  void* mine;
  std::vector<Copy> copies;
};

struct Machine {
  std::mutex one_at_a_time;
  std::mt19937_64 random{0x5eed};
  uint64_t schedule = 1;
  std::vector<std::unique_ptr<Thread>> threads;  // of the block, kept for the next
  std::vector<uint32_t> ready;
  uint32_t count = 0;  // threads of the block
  uint32_t hurry = 0;                        // draws by rank before a thread is chosen
  uint32_t rank[kMostThreads / kWarp] = {};  // of each warp
  uint32_t ended = 0;
  uint32_t at_barrier = 0;
  uint32_t in_warp[kMostThreads / kWarp] = {};  // lanes of each warp that wait in an exchange
  Fiber scheduler;
  Thread* running = nullptr;
  std::vector<uint64_t> shared;
  const std::function<void()>* body = nullptr;
  char fault[256] = "";
};

Machine m;

// One of the numbers 0 .. count - 1.
uint32_t draw(uint32_t count) {
  m.schedule ^= m.schedule << 13;  // xorshift64 (Marsaglia, 2003): drawn from at every switch
  m.schedule ^= m.schedule >> 7;
  m.schedule ^= m.schedule << 17;
  return static_cast<uint32_t>((m.schedule >> 32) * count >> 32);
}

// Back to the scheduler, until it chooses this thread again.
void leave(State state) {
  Thread& self = *m.running;
  self.state = state;
  Fiber::switch_to(self.fiber, m.scheduler, state == State::kEnded);
}

void thread_body(void*) {
  (*m.body)();
  leave(State::kEnded);
}

void make_ready(uint32_t index) {
  m.threads[index]->state = State::kReady;
  m.ready.push_back(index);
}

void release_barrier() {
  if (m.at_barrier == 0 || m.at_barrier + m.ended < m.count) return;
  m.at_barrier = 0;
  for (uint32_t i = 0; i < m.count; ++i) {
    if (m.threads[i]->state == State::kAtBarrier) make_ready(i);
  }
}

// Once the last lane of a warp has come: do what they came for, and let them go on.
void release_warp(uint32_t index) {
  const uint32_t first = index / kWarp * kWarp;
  if (++m.in_warp[first / kWarp] < kWarp) return;
  m.in_warp[first / kWarp] = 0;
  void* of_lane[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) {
    const Thread& thread = *m.threads[first + lane];
    if (thread.together != m.threads[first]->together) {
      snprintf(m.fault, sizeof m.fault,
               "lanes 0 and %d of warp %u have come to different exchanges: all lanes of a warp must take "
               "the same way to one", lane, first / kWarp);
      return;
    }
    of_lane[lane] = thread.mine;
  }
  m.threads[first]->together(of_lane);
  for (int lane = 0; lane < kWarp; ++lane) make_ready(first + lane);
}

void run_thread(uint32_t index) {
  Thread& thread = *m.threads[index];
  m.running = &thread;
  here = &thread.place;
  Fiber::switch_to(m.scheduler, thread.fiber);
  m.running = nullptr;
  if (thread.state == State::kEnded) ++m.ended;
  if (thread.state == State::kAtBarrier) ++m.at_barrier;
  if (thread.state == State::kInWarp) release_warp(index);
  release_barrier();
}

// Which of the ready threads is next. In every other block warps have ranks, and of a few threads drawn the one of
// the best rank goes first: there a warp can be far ahead of another wherever no barrier holds it.
size_t choose() {
  const uint32_t count = static_cast<uint32_t>(m.ready.size());
  size_t chosen = draw(count);
  for (uint32_t i = 0; i < m.hurry; ++i) {
    const size_t other = draw(count);
    if (m.rank[m.ready[other] / kWarp] < m.rank[m.ready[chosen] / kWarp]) chosen = other;
  }
  return chosen;
}

void run_block(uint3 block, dim3 threads, dim3 blocks) {
  for (uint64_t& word : m.shared) word = m.random();
  m.schedule = m.random() | 1;
  m.hurry = draw(2) * 6;
  for (uint32_t& rank : m.rank) rank = draw(kMostRank);
  m.ended = m.at_barrier = 0;
  memset(m.in_warp, 0, sizeof m.in_warp);
  m.ready.clear();
  for (uint32_t i = 0; i < m.count; ++i) {
    Thread& thread = *m.threads[i];
    const uint3 at = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
    thread.place = {at, block, threads, blocks};
    thread.copies.clear();
    thread.fiber.begin(thread_body, nullptr);
    make_ready(i);
  }
  while (!m.ready.empty() && m.fault[0] == '\0') {
    const size_t chosen = choose();
    const uint32_t index = m.ready[chosen];
    m.ready[chosen] = m.ready.back();
    m.ready.pop_back();
    run_thread(index);
  }
  if (m.fault[0] != '\0' || m.ended == m.count) return;
  for (uint32_t i = 0; i < m.count; ++i) {
    if (m.threads[i]->state == State::kEnded) continue;
    const bool barrier = m.threads[i]->state == State::kAtBarrier;
    snprintf(m.fault, sizeof m.fault,
             "block (%u, %u, %u) hangs: thread %u waits at %s that others never come to; %u of %u threads "
             "have ended", block.x, block.y, block.z, i, barrier ? "a barrier" : "an exchange of its warp",
             m.ended, m.count);
    return;
  }
}

const char* check(dim3 blocks, dim3 threads, size_t shared_bytes) {
  const uint64_t count = static_cast<uint64_t>(threads.x) * threads.y * threads.z;
  if (count == 0 || count > kMostThreads || count % kWarp != 0) {
    snprintf(m.fault, sizeof m.fault, "%llu threads in a block: use 32 to %u, a multiple of 32",
             static_cast<unsigned long long>(count), kMostThreads);
  } else if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.x > 0x7fffffffu ||
             blocks.y > 65535 || blocks.z > 65535) {
    snprintf(m.fault, sizeof m.fault, "a grid of %u x %u x %u blocks: at least 1, at most 2^31 - 1 x 65535 x 65535",
             blocks.x, blocks.y, blocks.z);
  } else if (shared_bytes > kMostShared) {
    snprintf(m.fault, sizeof m.fault, "%zu bytes of shared memory: a block has at most %zu", shared_bytes, kMostShared);
  } else {
    return nullptr;
  }
  return m.fault;
}

}  // namespace

void* shared() { return m.shared.data(); }
bool chance() { return draw(2) != 0; }
void shuffle(uint64_t seed) { m.random.seed(seed); }

void barrier() { leave(State::kAtBarrier); }

void meet(Together together, void* mine) {
  Thread& self = *m.running;
  self.together = together;
  self.mine = mine;
  leave(State::kInWarp);
}

void give_way() {
  const uint3& at = here->thread;
  const uint32_t thread = at.x + here->threads.x * (at.y + here->threads.y * at.z);
  m.rank[thread / kWarp] = kMostRank + draw(kMostRank);  // behind all that have not done so
}

void copy_later(void* to, const void* from, int valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (valid > 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    snprintf(m.fault, sizeof m.fault, "an asynchronous copy from %p to %p: both must lie on 16 bytes", from, to);
    return;
  }
  m.running->copies.push_back({to, from, valid});
}

void end_group() { m.running->copies.push_back({nullptr, nullptr, -1}); }

void wait_for_groups(int but) {
  std::vector<Copy>& copies = m.running->copies;
  // The groups waited for end with the mark before the last `but` marks.
  size_t end = copies.size();
  int marks = 0;
  while (end > 0) {
    if (copies[end - 1].valid < 0 && ++marks > but) break;
    --end;
  }
  for (size_t i = 0; i < end; ++i) {
    const Copy& copy = copies[i];
    if (copy.valid < 0) continue;
    char bytes[16] = {};
    memcpy(bytes, copy.from, static_cast<size_t>(copy.valid));
    memcpy(copy.to, bytes, sizeof bytes);
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(end));
}

const char* run(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> alone(m.one_at_a_time);
  m.fault[0] = '\0';
  if (check(blocks, threads, shared_bytes) != nullptr) return m.fault;
  m.count = threads.x * threads.y * threads.z;
  while (m.threads.size() < m.count) m.threads.push_back(std::make_unique<Thread>());
  // As many bytes as asked for and no more, for the address sanitizer to watch over their end.
  m.shared = std::vector<uint64_t>((shared_bytes + 7) / 8);
  m.body = &body;
  const uint64_t total = static_cast<uint64_t>(blocks.x) * blocks.y * blocks.z;
  std::vector<uint64_t> order(total);
  for (uint64_t i = 0; i < total; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), m.random);
  for (const uint64_t i : order) {
    const uint3 block = {static_cast<uint32_t>(i % blocks.x), static_cast<uint32_t>(i / blocks.x % blocks.y),
                         static_cast<uint32_t>(i / blocks.x / blocks.y)};
    run_block(block, threads, blocks);
    if (m.fault[0] != '\0') return m.fault;
  }
  return nullptr;
}

}  // namespace emulator
}  // namespace bitimpl
