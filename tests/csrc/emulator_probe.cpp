// Kernels that are right, and kernels with one fault each: what the emulator must run and what it must find.
// Prints one line a check, "name: ok" or "name: what was seen"; the test reads them.
#include <stdint.h>
#include <stdio.h>

#include <random>
#include <string>
#include <vector>

#include "../../csrc/cuda/ptx.cuh"

using namespace bitimpl;
using namespace bitimpl::cuda;

namespace {

void report(const char* name, bool fine, const char* seen = "wrong result") {
  printf("%s: %s\n", name, fine ? "ok" : seen);
}

constexpr int kThreads = 128;

// The sum of a block by halves, each half after a barrier; the fault leaves that out.
template <bool BARRIER>
__global__ void sum_block(const uint32_t* in, uint32_t* out) {
  uint32_t* room = shared_memory<uint32_t>();
  const uint32_t t = threadIdx.x;
  room[t] = in[blockIdx.x * kThreads + t];
  for (uint32_t half = kThreads / 2; half > 0; half /= 2) {
    if (BARRIER) __syncthreads();
    if (t < half) room[t] += room[t + half];
  }
  if (t == 0) out[blockIdx.x] = room[0];
}

// Each thread hands its value to its neighbour twice; the fault overwrites before the neighbour has read.
template <bool BARRIER>
__global__ void pass_on(const uint32_t* in, uint32_t* out) {
  uint32_t* room = shared_memory<uint32_t>();
  const uint32_t t = threadIdx.x;
  uint32_t value = in[t];
  for (int turn = 0; turn < 2; ++turn) {
    room[t] = value;
    __syncthreads();
    value = room[(t + 1) % kThreads];
    if (BARRIER) __syncthreads();
  }
  out[t] = value;
}

// A copy past the registers; the fault does not wait for it.
template <bool WAIT>
__global__ void copy_through(const uint4* in, uint4* out) {
  uint4* room = shared_memory<uint4>();
  const uint32_t t = threadIdx.x;
  copy_async(room + t, in + t, t % 2 == 0 ? 16 : 5);
  commit_copies();
  if (WAIT) wait_for_copies<0>();
  __syncthreads();
  out[t] = room[(t + 33) % kThreads];
}

__global__ void copy_askew(const char* in) {
  copy_async(shared_memory<uint4>() + threadIdx.x, in + 8);
  commit_copies();
  wait_for_copies<0>();
}

// Two groups in flight, the first waited for.
__global__ void copy_in_turns(const uint4* in, uint4* out) {
  uint4* room = shared_memory<uint4>();
  const uint32_t t = threadIdx.x;
  for (int stage = 0; stage < 2; ++stage) {
    copy_async(room + stage * kThreads + t, in + stage * kThreads + t);
    commit_copies();
  }
  wait_for_copies<1>();
  out[t] = room[t];
  wait_for_copies<0>();
  out[kThreads + t] = room[kThreads + t];
}

// One lane waits for the block, its warp waits for that lane.
__global__ void barrier_for_some() {
  if (threadIdx.x > 0) shuffle_xor(1, 1);
  __syncthreads();
}

__global__ void split_warp(int32_t* out) {
  const int t = static_cast<int>(threadIdx.x);
  out[t] = t % 2 == 0 ? shuffle_xor(t, 2) : static_cast<int>(ballot(true));
}

__global__ void exchanges(int32_t* out) {
  const int t = static_cast<int>(threadIdx.x);
  const int64_t wide = shuffle_from(int64_t{t} << 33, 7);
  const uint32_t odd = ballot(t % 2 == 1);
  out[t] = shuffle_xor(t, 5) == (t ^ 5) && wide == (int64_t{t / 32 * 32 + 7} << 33) && odd == 0xaaaaaaaau;
}

__global__ void multiply(const uint8_t* a, const int8_t* b, int32_t* d) {
  const int lane = static_cast<int>(threadIdx.x);
  const int g = lane / 4;
  const int t = lane % 4;
  uint32_t a4[4];
  uint32_t b2[2];
  for (int i = 0; i < 4; ++i) memcpy(&a4[i], a + (g + i % 2 * 8) * 32 + i / 2 * 16 + 4 * t, 4);
  for (int i = 0; i < 2; ++i) memcpy(&b2[i], b + g * 32 + i * 16 + 4 * t, 4);  // b by columns
  int32_t d4[4] = {1, 2, 3, 4};
  mma_16x8x32(d4, a4, b2);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d4[i];
}

__global__ void past_the_end() { shared_memory<int32_t>()[threadIdx.x + 1] = 1; }

const Grid kOne = {{1}, {kThreads}, 4 * kThreads, nullptr};

template <class Run>
int wrong_of(int times, Run run) {
  int wrong = 0;
  for (int i = 0; i < times; ++i) wrong += !run();
  return wrong;
}

void check_barriers() {
  constexpr int kBlocks = 3;
  std::vector<uint32_t> in(kBlocks * kThreads), out(kBlocks);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i * i * i);
  const Grid grid = {{kBlocks}, {kThreads}, 4 * kThreads, nullptr};
  const auto right = [&] {
    for (int block = 0; block < kBlocks; ++block) {
      uint32_t sum = 0;
      for (int i = 0; i < kThreads; ++i) sum += in[static_cast<size_t>(block * kThreads + i)];
      if (out[static_cast<size_t>(block)] != sum) return false;
    }
    return true;
  };
  report("sum with barriers", wrong_of(20, [&] { return launch(sum_block<true>, grid, in.data(), out.data()) == 0 && right(); }) == 0);
  report("sum without barriers is found out",
         wrong_of(20, [&] { return launch(sum_block<false>, grid, in.data(), out.data()) == 0 && right(); }) == 20);

  std::vector<uint32_t> passed(kThreads);
  const auto twice = [&] {
    for (size_t i = 0; i < kThreads; ++i) {
      if (passed[i] != in[(i + 2) % kThreads]) return false;
    }
    return true;
  };
  report("reads before the next write",
         wrong_of(20, [&] { return launch(pass_on<true>, kOne, in.data(), passed.data()) == 0 && twice(); }) == 0);
  report("a write before the last read is found out",
         wrong_of(20, [&] { return launch(pass_on<false>, kOne, in.data(), passed.data()) == 0 && twice(); }) == 20);
}

void check_copies() {
  std::vector<uint4> in(2 * kThreads), out(2 * kThreads);
  uint32_t next = 1;
  for (uint4& v : in) v = {next++, next++, next++, next++};
  const Grid grid = {{1}, {kThreads}, sizeof(uint4) * 2 * kThreads, nullptr};
  const auto same = [](const uint4& a, const uint4& b) { return memcmp(&a, &b, sizeof a) == 0; };
  const auto right = [&] {
    for (size_t i = 0; i < kThreads; ++i) {
      const size_t from = (i + 33) % kThreads;
      uint4 expected = in[from];
      if (from % 2 == 1) expected = {in[from].x, in[from].y & 0xffu, 0, 0};
      if (!same(out[i], expected)) return false;
    }
    return true;
  };
  report("copies waited for", launch(copy_through<true>, grid, in.data(), out.data()) == 0 && right());
  report("copies not waited for are found out", launch(copy_through<false>, grid, in.data(), out.data()) == 0 && !right());
  const int askew = launch(copy_askew, grid, reinterpret_cast<const char*>(in.data()));
  report("a copy from an odd place is found out",
         askew != 0 && std::string(bitimpl_last_error()).find("16 bytes") != std::string::npos, bitimpl_last_error());
  bool fine = launch(copy_in_turns, grid, in.data(), out.data()) == 0;
  for (size_t i = 0; i < in.size(); ++i) fine = fine && same(in[i], out[i]);
  report("copies in turns", fine);
}

void check_faults() {
  std::vector<int32_t> out(kThreads);
  const auto found = [](int status, const char* text) {
    return status != 0 && std::string(bitimpl_last_error()).find(text) != std::string::npos;
  };
  report("a barrier that others never come to", found(launch(barrier_for_some, kOne), "hangs"), bitimpl_last_error());
  report("lanes at different exchanges", found(launch(split_warp, kOne, out.data()), "different exchanges"),
         bitimpl_last_error());
  report("blocks of 33 threads", found(launch(past_the_end, Grid{{1}, {33}, 0, nullptr}), "multiple of 32"));
  report("an empty grid", found(launch(past_the_end, Grid{{0}, {32}, 0, nullptr}), "grid"));
  report("too much shared memory", found(launch(past_the_end, Grid{{1}, {32}, 1 << 20, nullptr}), "shared memory"));
}

void check_exchanges() {
  std::vector<int32_t> out(kThreads);
  bool fine = launch(exchanges, kOne, out.data()) == 0;
  for (const int32_t v : out) fine = fine && v == 1;
  report("exchanges", fine);

  std::mt19937 random(1);
  std::vector<uint8_t> a(16 * 32);
  std::vector<int8_t> b(32 * 8);
  for (auto& v : a) v = static_cast<uint8_t>(random());
  for (auto& v : b) v = static_cast<int8_t>(random());
  std::vector<int32_t> d(16 * 8);
  fine = launch(multiply, Grid{{1}, {32}, 0, nullptr}, a.data(), b.data(), d.data()) == 0;
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      int32_t sum = 1 + col % 2 + row / 8 * 2;
      for (int k = 0; k < 32; ++k) sum += a[static_cast<size_t>(row * 32 + k)] * b[static_cast<size_t>(col * 32 + k)];
      fine = fine && d[static_cast<size_t>(row * 8 + col)] == sum;
    }
  }
  report("mma", fine);
}

void check_words() {
  report("dp4a", dp4a(0xff020301u, 0x80ff7f01u, 10) == 10 + 255 * -128 + 2 * -1 + 3 * 127 + 1);
  report("permute_bytes", permute_bytes(0x44332211u, 0x88776655u, 0x7351) == 0x88446622u);
  report("round_to_int", round_to_int(2.5f) == 2 && round_to_int(-3.5f) == -4 && round_to_int(0.49999997f) == 0);
}

}  // namespace

// With an argument: the kernel that writes past its shared memory, for the address sanitizer to stop.
int main(int argc, char**) {
  if (argc > 1) return launch(past_the_end, Grid{{1}, {32}, 4 * 32, nullptr});
  check_words();
  check_exchanges();
  check_barriers();
  check_copies();
  check_faults();
  return 0;
}
