// Where CUTLASS reads windows of images: its own iterators, run on the host in place of a GPU's threads,
// against the plain loops that stand for it in the emulator. A case a line of standard input: samples,
// columns, words, words between pixels and rows of w, then height and width of x, y, kernel, stride, dilation
// and padding. Says what is wrong and ends with 1.
#include <stdio.h>
#include <string.h>

#include <random>
#include <vector>

#include "../../csrc/cutlass/conv.cu"
#define contract contract_by_loops
#include "../../csrc/emulator/contraction.cpp"

namespace bitimpl {

int fail(bitimpl_status status, const char*, ...) { return status; }

namespace cuda {
namespace {

constexpr int kTileWords = 16;  // of 512 bits

struct Memory {
  const uint32_t* begin;
  const uint32_t* end;
};

// Tiles [k][row] of one operand as the threads of a block copy them; false where one reads outside.
template <class Iterator, class Make>
bool load(const Make& make, int threads, int steps, const Memory& memory, std::vector<uint32_t>* tiles) {
  using Map = typename Iterator::ThreadMap;
  tiles->assign(static_cast<size_t>(steps) * kTile * kTileWords, 0);
  for (int thread = 0; thread < threads; ++thread) {
    Iterator at = make(thread);
    const auto first = Map::initial_offset(thread);
    for (int step = 0; step < steps; ++step) {
      at.set_iteration_index(0);
      for (int i = 0; i < Map::Iterations::kStrided; ++i, ++at) {
        if (!at.valid()) continue;
        const uint32_t* from = reinterpret_cast<const uint32_t*>(at.get());
        if (from < memory.begin || from + kVectorWords > memory.end) return false;
        const int row = first.strided() + i * Map::Delta::kStrided;
        const int64_t to = (int64_t{step} * kTile + row) * kTileWords + first.contiguous() / 32;
        memcpy(tiles->data() + to, from, 4 * kVectorWords);
      }
      at.advance();
    }
  }
  return true;
}

// What a GPU would leave in task.sums, but for the order; false where a read lies outside of x or w.
template <class Operation>
bool contract_by_iterators(const BitImages& task, const Memory& x, const Memory& w) {
  using Kernel = typename Operation::UnderlyingKernel;
  using A = typename Kernel::Mma::IteratorA;
  using B = typename Kernel::Mma::IteratorB;
  static_assert(A::kAccessesPerVector == 1 && B::kAccessesPerVector == 1, "a vector an access");
  const auto arguments = arguments_of<Operation>(task);
  if (Operation::can_implement(arguments) != cutlass::Status::kSuccess) return false;
  const typename Kernel::Params params(arguments);
  constexpr int kThreads = 32 * Operation::kWarpCount;
  const int steps = params.gemm_k_iterations;
  const int64_t positions = int64_t{task.samples} * task.out[0] * task.out[1];
  std::vector<uint32_t> a;
  std::vector<uint32_t> b;
  for (int m = 0; m < params.grid_tiled_shape.m(); ++m) {
    for (int n = 0; n < params.grid_tiled_shape.n(); ++n) {
      const auto of_x = [&](int thread) {
        return A(params.iterator_A, params.problem_size, params.ptr_A, thread, {m * kTile, 0});
      };
      const auto of_w = [&](int thread) {
        return B(params.iterator_B, params.problem_size, params.ptr_B, thread, {0, n * kTile});
      };
      if (!load<A>(of_x, kThreads, steps, x, &a) || !load<B>(of_w, kThreads, steps, w, &b)) return false;
      for (int64_t row = 0; row < kTile && m * kTile + row < positions; ++row) {
        for (int64_t column = 0; column < kTile && n * kTile + column < task.columns; ++column) {
          int32_t sum = 0;
          for (int64_t step = 0; step < steps; ++step) {
            sum += set_of_both(a.data() + (step * kTile + row) * kTileWords,
                               b.data() + (step * kTile + column) * kTileWords, kTileWords);
          }
          task.sums[(m * kTile + row) * task.sums_stride + n * kTile + column] = sum;
        }
      }
    }
  }
  return true;
}

// 16 bytes aligned, as CUTLASS wants them.
struct Words {
  std::vector<uint4> vectors;

  explicit Words(int64_t count) : vectors(static_cast<size_t>(count + kVectorWords - 1) / kVectorWords) {}
  uint32_t* data() { return reinterpret_cast<uint32_t*>(vectors.data()); }
};

const char* complaint(BitImages task) {
  const int64_t taps = int64_t{task.kernel[0]} * task.kernel[1];
  const int64_t pixels = int64_t{task.samples} * task.size[0] * task.size[1];
  const int64_t x_words = (pixels - 1) * task.pixel_stride + task.words;
  const int64_t w_words = (task.columns - 1) * task.w_stride + taps * task.words;
  const int64_t sums = int64_t{task.samples} * task.out[0] * task.out[1] * task.columns;
  std::mt19937 random(static_cast<uint32_t>(sums));
  Words x(x_words);
  Words w(w_words);
  for (int64_t i = 0; i < x_words; ++i) x.data()[i] = random();
  for (int64_t i = 0; i < w_words; ++i) w.data()[i] = random();
  Words expected(sums);
  Words found(sums);
  task.x = x.data();
  task.w = w.data();
  task.sums_stride = task.columns;
  task.sums = reinterpret_cast<int32_t*>(expected.data());
  if (contract_by_loops(task, nullptr) != BITIMPL_OK) return "the loops refuse it";
  task.sums = reinterpret_cast<int32_t*>(found.data());
  const Memory of_x = {x.data(), x.data() + x_words};
  const Memory of_w = {w.data(), w.data() + w_words};
  const bool reads_right = is_small(task) ? contract_by_iterators<ForSmallKernels>(task, of_x, of_w)
                                          : contract_by_iterators<ForLargeKernels>(task, of_x, of_w);
  if (!reads_right) return "CUTLASS refuses it, or reads outside of x or w";
  return memcmp(expected.data(), found.data(), 4 * sums) == 0 ? nullptr : "sums differ";
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

int main() {
  bitimpl::cuda::BitImages t = {};
  int pixel_stride;
  int w_stride;
  int count = 0;
  while (scanf("%d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d", &t.samples, &t.columns, &t.words,
               &pixel_stride, &w_stride, &t.size[0], &t.size[1], &t.out[0], &t.out[1], &t.kernel[0],
               &t.kernel[1], &t.stride[0], &t.stride[1], &t.dilation[0], &t.dilation[1], &t.before[0],
               &t.before[1]) == 17) {
    t.pixel_stride = pixel_stride;
    t.w_stride = w_stride;
    const char* wrong = bitimpl::cuda::complaint(t);
    ++count;
    if (wrong != nullptr) {
      printf("case %d: %s\n", count, wrong);
      return 1;
    }
  }
  printf("%d cases\n", count);
  return 0;
}
