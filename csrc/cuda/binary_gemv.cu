// Signs of few tokens times binary weights: every byte of the weight is read once, as it lies, and a word of it
// costs an exclusive or, two thirds of a full adder and half a count of set bits a token.
//
// Counting bits is what takes longest (16 counts a cycle and multiprocessor, a quarter of what logic has), so words
// are added first: two words and what is left of those before make one word of carries, whose bits count twice.
#include "binary_walk.cuh"
#include "bit_kernels.h"
#include "bits.cuh"
#include "block.cuh"
#include "bytes.cuh"

namespace bitimpl {
namespace cuda {
namespace {

using namespace binary;

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int64_t kMostTokens = 8;
constexpr int32_t kMostUneven = 4;  // tokens of a launch where rows do not lie in whole pieces
// Values that every block turns into bits again rather than one launch does it for all of them.
constexpr int64_t kMostBinarised = 16384;

// Shared memory, in order: bits of every token, room to reduce, integers of a round, scales of tokens.
__host__ __device__ __forceinline__ int64_t bytes_of_tokens(const Plan& plan) {
  return int64_t{plan.tokens} * plan.pieces * kPieceBytes + int64_t{kWarps} * sizeof(double);
}

__host__ __device__ __forceinline__ int64_t bytes_of_scales(const Plan& plan) { return int64_t{4} * plan.tokens; }

// ---- tokens as bits -----------------------------------------------------------------------------------------

// The first column of a piece and how many of its columns exist.
struct Span {
  int64_t first;
  int32_t columns;
};

__device__ __forceinline__ Span span_of(const Weight& w, const Plan& plan, int32_t piece) {
  const int32_t segment = piece / plan.segment_pieces;
  const int32_t inside = piece - segment * plan.segment_pieces;
  const int64_t end = least((segment + 1) * w.segment, w.cols);
  const int64_t first = segment * w.segment + int64_t{inside} * kPieceColumns;
  return {first, static_cast<int32_t>(least<int64_t>(kPieceColumns, end - first))};
}

// Signs that came as bits: a thread a word.
__device__ __forceinline__ void copy_signs(const BitTask& task, const Plan& plan, int64_t token, uint32_t* to) {
  const uint8_t* row = static_cast<const uint8_t*>(task.source.x) + token * task.source.sample_stride / 8;
  for (int32_t i = threadIdx.x; i < plan.pieces * 4; i += kThreads) {
    const Span span = span_of(task.weight, plan, i / 4);
    const int32_t columns = span.columns - i % 4 * 32;
    uint32_t word[1] = {0};
    if (columns > 0) load_bytes(row + span.first / 8 + i % 4 * 4, ceil_div(columns, 8), word);
    to[i] = columns >= 32 ? word[0] : columns <= 0 ? 0 : word[0] & ((1u << columns) - 1);
  }
}

// Signs of floats: a warp a word, a lane a column. Returns this thread's share of the magnitudes' sum.
__device__ __forceinline__ double binarise(const BitTask& task, const Plan& plan, int64_t token, uint32_t* to) {
  constexpr int kAtOnce = 8;
  const BitSource& s = task.source;
  const int32_t lane = threadIdx.x % kWarp;
  const int32_t words = plan.pieces * 4;
  double sum = 0.0;
  for (int32_t first = threadIdx.x / kWarp; first < words; first += kAtOnce * kWarps) {
    float x[kAtOnce];
    bool valid[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int32_t word = first + u * kWarps;
      const Span span = span_of(task.weight, plan, least(word, words - 1) / 4);
      const int32_t column = word % 4 * 32 + lane;
      valid[u] = word < words && column < span.columns;
      const int64_t at = token * s.sample_stride + (span.first + column) * s.channel_stride;
      x[u] = valid[u] ? load_float(s.x, s.dtype, at) : 0.0f;
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int32_t word = first + u * kWarps;
      if (word >= words) break;
      const uint32_t bits = ballot(valid[u] && x[u] >= 0.0f);
      if (lane == 0) to[word] = bits;
      sum += fabsf(x[u]);
    }
  }
  return sum;
}

// The launch's tokens into shared memory.
__device__ __forceinline__ void take_tokens(const BitTask& task, const Plan& plan, uint32_t* bits, double* room,
                                            float* scales) {
  const int32_t words = plan.pieces * 4;
  for (int32_t token = 0; token < plan.tokens; ++token) {
    const int64_t sample = plan.token + token;
    uint32_t* to = bits + token * words;
    if (!plan.quantises) {
      const uint32_t* from = task.x + sample * task.pixel_words;
      for (int32_t i = threadIdx.x; i < plan.pieces; i += kThreads) copy_async(to + 4 * i, from + 4 * i);
      if (threadIdx.x == 0) scales[token] = task.x_scale[sample];
    } else if (task.source.dtype == BITIMPL_SIGNS) {
      copy_signs(task, plan, sample, to);
      if (threadIdx.x == 0) scales[token] = task.source.scale[sample];
    } else {
      const double sum = over_block(binarise(task, plan, sample, to), room, Add{});
      // What is not finite makes the sum so: float32 magnitudes do not add up to infinity in float64.
      if (threadIdx.x == 0) {
        scales[token] = sum <= 1.7e308 ? static_cast<float>(sum / static_cast<double>(task.weight.cols)) : NAN;
      }
    }
  }
  commit_copies();
  wait_for_copies<0>();
}

// ---- products ------------------------------------------------------------------------------------------------

// Bits of x ^ w that are set, of four rows and each token.
template <int TOKENS>
class SetBits {
 public:
  __device__ __forceinline__ SetBits(const uint32_t* bits, const Plan& plan)
      : x_(reinterpret_cast<const uint4*>(bits)), plan_(plan) {}

  __device__ __forceinline__ void add(const Load& load, int32_t piece) {
    const uint4* from = x_ + piece;
#pragma unroll
    for (int token = 0; token < TOKENS; ++token) {
      if (token > 0 && token == plan_.tokens) break;
      const uint4 x = *from;
      from += opaque(plan_.pieces);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4& w = load.row[r];
        const int32_t pairs = count_bits(carries(w.x ^ x.x, w.y ^ x.y, &ones_[token][r])) +
                              count_bits(carries(w.z ^ x.z, w.w ^ x.w, &ones_[token][r]));
        pairs_[token][r / 2] += static_cast<uint32_t>(pairs) << 16 * (r % 2);
      }
    }
  }

  __device__ __forceinline__ void take(int token, int32_t (&sums)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t pairs = pairs_[token][r / 2] >> 16 * (r % 2) & 0xffff;
      sums[r] = static_cast<int32_t>(2 * pairs) + count_bits(ones_[token][r]);
      ones_[token][r] = 0;
    }
#pragma unroll
    for (int pair = 0; pair < kRows / 2; ++pair) pairs_[token][pair] = 0;
  }

 private:
  // Full adders, bit by bit: a + b + *ones = 2 * result + *ones.
  static __device__ __forceinline__ uint32_t carries(uint32_t a, uint32_t b, uint32_t* ones) {
    const uint32_t both = (a & b) | (a & *ones) | (b & *ones);
    *ones ^= a ^ b;
    return both;
  }

  const uint4* x_;
  const Plan& plan_;
  // Of two rows in a word: 64 a load, and what fits in shared memory is less than a thousand loads a row.
  uint32_t pairs_[TOKENS][kRows / 2] = {};
  uint32_t ones_[TOKENS][kRows] = {};
};

// y of the round's rows from its integers: a lane a result, so that a byte of signs is of eight neighbours.
__device__ __forceinline__ void finish(const BitTask& task, const Plan& plan, const int32_t* totals,
                                       const float* scales, int64_t first_row, int32_t rows) {
  const Weight& w = task.weight;
  const BitResult& r = task.result;
  const int32_t results = rows * plan.tokens;
  const int lane = threadIdx.x % kWarp;
  for (int32_t base = threadIdx.x / kWarp * kWarp; base < results; base += kThreads) {
    const int32_t token = (base + lane) / rows;
    const int32_t in_round = base + lane - token * rows;
    const int64_t row = first_row + in_round;
    const int64_t sample = plan.token + token;
    const bool mine = token < plan.tokens && row < w.rows;
    bool set = false;
    if (mine) {
      const int32_t* of_row = totals + total_at(plan, token, in_round);
      const float t = scaled_sum(w, row, [&](int32_t component, int32_t segment) {
        const int64_t columns = least(w.segment, w.cols - segment * w.segment);
        return static_cast<float>(static_cast<int32_t>(columns) - 2 * of_row[component * w.segments + segment]);
      });
      const float y = value_of(r, scales[token], row, t);
      if (r.dtype == BITIMPL_SIGNS) {
        set = sign_of(r, sample, row, y);
      } else {
        store_value(r, sample * r.sample_stride + row * r.channel_stride, y);
      }
    }
    if (r.dtype != BITIMPL_SIGNS) continue;
    const uint32_t signs = ballot(set);
    if (mine && lane % 8 == 0) {
      static_cast<uint8_t*>(r.y)[(sample * r.sample_stride + row) / 8] = static_cast<uint8_t>(signs >> lane);
    }
  }
}

template <int TOKENS, bool WHOLE>
__global__ void __launch_bounds__(kThreads, 1) popcount_kernel(BitTask task, Plan plan) {
  constexpr int kAhead = WHOLE && TOKENS <= 2 ? 2 : 1;  // what registers hold
  uint32_t* bits = shared_memory<uint32_t>();
  double* room = reinterpret_cast<double*>(bits + int64_t{plan.tokens} * plan.pieces * 4);
  float* scales = reinterpret_cast<float*>(room + kWarps);
  int32_t* totals = reinterpret_cast<int32_t*>(scales + plan.tokens);

  work<SetBits<TOKENS>, TOKENS, WHOLE, kAhead, kThreads>(
      task.weight, plan, task.result.bias, task.result.bias_dtype, bits, totals,
      [&] { take_tokens(task, plan, bits, room, scales); },
      [&](int64_t first_row, int32_t rows) { finish(task, plan, totals, scales, first_row, rows); });
}

// ---- host --------------------------------------------------------------------------------------------------

// A launch of so many tokens; the number of blocks, or 0 where shared memory does not hold them.
int64_t plan_launch(const BitTask& task, const Device& device, int32_t tokens, Plan* plan) {
  *plan = plan_of(task.weight);
  plan->tokens = plan->columns = tokens;
  // Eight rows of signs are a byte.
  if (task.result.dtype == BITIMPL_SIGNS) plan->granule = most(1, 8 / plan->unit_rows);
  const int64_t room = static_cast<int64_t>(device.shared_bytes) - bytes_of_tokens(*plan) - bytes_of_scales(*plan);
  return room <= 0 ? 0 : divide_units(task.weight, device, room, plan);
}

// As many tokens as are taken at once and fit, whatever y is of; 0: not even one.
int32_t tokens_at_once(const BitTask& task, const Device& device) {
  BitTask of_signs = task;
  of_signs.result.dtype = BITIMPL_SIGNS;
  Plan plan;
  const int32_t most_at_once = has_whole_pieces(task.weight) ? kMostColumns : kMostUneven;
  int32_t tokens = static_cast<int32_t>(most<int64_t>(1, least<int64_t>(task.samples, most_at_once)));
  while (tokens > 0 && plan_launch(of_signs, device, tokens, &plan) == 0) tokens /= 2;
  return tokens;
}

const char* refuses(const BitTask& task, const Device& device) {
  const Windows& v = task.windows;
  if (task.form != Form::kSigns) return "it multiplies signs";
  if (v.taps > 1 || v.pads || v.pixels != 1 || v.positions != 1 || task.groups > 1 || task.chunk_words != kChunkWords) {
    return "it takes matrices, not windows";
  }
  if (tokens_at_once(task, device) == 0) {
    return "a token of so many columns, or the sums of so many scale groups, are more than shared memory holds";
  }
  return nullptr;
}

bool prefers(const BitTask& task, const Device&) { return task.samples <= kMostTokens; }

int needs(const BitTask& task, const Device&) {
  return task.samples * task.weight.cols <= kMostBinarised ? 0 : kNeedsRows;
}

int64_t scratch(const BitTask&, const Device&) { return 0; }

int launch_tokens(const BitTask& task, const Plan& plan, const Grid& grid) {
  if (!has_whole_pieces(task.weight)) return launch(popcount_kernel<kMostUneven, false>, grid, task, plan);
  if (plan.tokens <= 1) return launch(popcount_kernel<1, true>, grid, task, plan);
  if (plan.tokens <= 2) return launch(popcount_kernel<2, true>, grid, task, plan);
  if (plan.tokens <= 4) return launch(popcount_kernel<4, true>, grid, task, plan);
  return launch(popcount_kernel<kMostColumns, true>, grid, task, plan);
}

int run(const BitTask& task, const Device& device, Stream stream, void*) {
  const int32_t at_once = tokens_at_once(task, device);
  for (int64_t token = 0; token < task.samples; token += at_once) {
    Plan plan;
    const int64_t blocks =
        plan_launch(task, device, static_cast<int32_t>(least<int64_t>(at_once, task.samples - token)), &plan);
    plan.token = token;
    plan.quantises = needs(task, device) == 0;
    const int64_t bytes = bytes_of_tokens(plan) + bytes_of_scales(plan) + bytes_of_totals(plan, plan.round);
    const Grid grid = {{static_cast<uint32_t>(blocks)}, {kThreads}, static_cast<size_t>(bytes), stream};
    const int status = launch_tokens(task, plan, grid);
    if (status != BITIMPL_OK) return status;
  }
  return BITIMPL_OK;
}

}  // namespace

const BitKernel kPopcount = {"popcount", refuses, prefers, needs, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
