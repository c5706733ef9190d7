// Integers of few tokens times binary weights: every byte of the weight is read once, as it lies, and 32 weights cost
// eight masks for all tokens and eight dp4a for each.
//
// Bit i of the four bytes of a word, masked, is an operand of dp4a as it is, 2^i times too large: the activations lie
// in shared memory in the order that makes of it, 0, 8, 16, 24 and so on. Sums of different i are kept apart where
// registers hold them, and shifted down at the end; else words are shifted before, for all tokens at once.
//     dot = 2 sum(bit * q) - sum(q)
#include "binary_walk.cuh"
#include "kernels.h"
#include "quantize.cuh"

namespace bitimpl {
namespace cuda {
namespace {

using namespace binary;

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kWordBits = 8;         // of a byte: words of activations for 32 columns
constexpr int kPieceTokens = 128;    // bytes of a piece's activations
constexpr int kChunks = kPieceTokens / 16;
constexpr int32_t kMostUneven = 4;   // columns of a launch where rows do not lie in whole pieces
// Values that every block quantises again rather than one launch does it for all of them.
constexpr int64_t kMostQuantised = 16384;

// Shared memory, in order: q of every column, scales of tokens, sums of q, room to reduce, integers of a round.
__host__ __device__ __forceinline__ int32_t bytes_of_column(const Plan& plan) {
  return plan.loads * plan.lanes * kPieceTokens;
}

__host__ __device__ __forceinline__ int64_t bytes_besides(const Weight& w, const Plan& plan) {
  return 4 * (int64_t{plan.tokens} + int64_t{plan.columns} * w.segments + int64_t{plan.tokens} * kWarps);
}

// Sixteen bytes of a piece's activations: two halves of each of its four words. Lanes that read the same chunk of
// their pieces at once read side by side, and a lane that writes all chunks of a piece writes to different banks.
__device__ __forceinline__ int32_t chunk_at(const Plan& plan, int32_t piece, int32_t chunk) {
  const int32_t mask = plan.lanes - 1;
  return ((piece & ~mask) * kChunks + chunk * plan.lanes + ((piece ^ chunk) & mask)) * 16;
}

// ---- tokens in shared memory ------------------------------------------------------------------------------------

// Puts four columns of a step where they belong. Of 32 columns eight lanes have four neighbours each; what belongs
// into a word is every eighth column, so four lanes exchange bytes: a matrix of four by four, transposed.
struct PiecesInOrder {
  const Weight& w;
  const Plan& plan;

  __device__ __forceinline__ void operator()(int8_t* row, int32_t step, int32_t column, uint32_t word) const {
    const int lane = threadIdx.x % kWarp;
    const uint32_t far = shuffle_xor(word, 4);
    word = permute_bytes(word, far, lane & 4 ? 0x3276 : 0x5410);
    const uint32_t near = shuffle_xor(word, 2);
    word = permute_bytes(word, near, lane & 2 ? 0x3715 : 0x6240);
    if (step >= w.steps) return;
    const int32_t segment = step / w.segment_steps;
    const int32_t inside = step - segment * w.segment_steps;
    const int32_t piece = segment * plan.segment_pieces + inside / 2;
    const int32_t chunk = (inside % 2 * 2 + column / 32) * 2 + lane % 2;
    *reinterpret_cast<uint32_t*>(row + chunk_at(plan, piece, chunk) + lane % 8 / 2 * 4) = word;
  }
};

// The launch's tokens into shared memory.
__device__ __forceinline__ void take_tokens(const LinearTask& task, const Plan& plan, int8_t* q, float* scales,
                                            int32_t* sums, uint32_t* largest) {
  const Weight& w = task.weight;
  const int32_t planes = task.x.planes;
  const int32_t row_bytes = bytes_of_column(plan);
  const PiecesInOrder put = {w, plan};
  if (!plan.quantises) {
    constexpr int kStepWords = kStep / 4;
    const int32_t words = round_up<int32_t>(w.steps * kStepWords, kWarp);  // whole warps
    for (int32_t column = 0; column < plan.columns; ++column) {
      const int64_t token = plan.token + column / planes;
      const int8_t* from = task.x.q[column % planes] + token * task.x.row_bytes;
      for (int32_t i = threadIdx.x; i < words; i += kThreads) {
        const int32_t step = i / kStepWords;
        const uint32_t word = step < w.steps ? *reinterpret_cast<const uint32_t*>(from + int64_t{i} * 4) : 0;
        put(q + column * row_bytes, step, i % kStepWords * 4, word);
      }
      const int32_t* sums_from = task.x.sums[column % planes] + token * w.segments;
      for (int32_t i = threadIdx.x; i < w.segments; i += kThreads) sums[column * w.segments + i] = sums_from[i];
      if (threadIdx.x == 0 && column % planes == 0) scales[column / planes] = task.x.scale[token];
    }
    return;
  }
  // The largest of every token first, so that the tokens wait for memory together.
  for (int32_t i = threadIdx.x; i < plan.columns * w.segments; i += kThreads) sums[i] = 0;
  const bool wide = wide_loads(task.source);
  for (int32_t token = 0; token < plan.tokens; ++token) {
    uint32_t share = largest_of_share<kThreads>(task.source, w.cols, plan.token + token, wide);
    for (int mask = 1; mask < kWarp; mask *= 2) share = most(share, shuffle_xor(share, mask));
    if (threadIdx.x % kWarp == 0) largest[token * kWarps + threadIdx.x / kWarp] = share;
  }
  __syncthreads();
  for (int32_t token = 0; token < plan.tokens; ++token) {
    uint32_t of_token = 0;
    for (int warp = 0; warp < kWarps; ++warp) of_token = most(of_token, largest[token * kWarps + warp]);
    const Rule rule = rule_of_largest(of_token, task.source.activation);
    if (threadIdx.x == 0) scales[token] = rule.scale;
    int8_t* const rows[2] = {q + token * planes * row_bytes, q + (token * planes + 1) * row_bytes};
    int32_t* const of_rows[2] = {sums + token * planes * w.segments, sums + (token * planes + 1) * w.segments};
    quantise_token<kThreads>(w, task.source, plan.token + token, rule, planes, wide, rows, of_rows, put);
  }
}

// ---- products ------------------------------------------------------------------------------------------------------

// Sums of bit times q, of four rows and each column.
template <int COLUMNS>
class BitsTimesBytes {
 public:
  __device__ __forceinline__ BitsTimesBytes(const int8_t* q, const Plan& plan) : q_(q), plan_(plan) {}

  __device__ __forceinline__ void add(const Load& load, int32_t piece) {
    const int32_t row_bytes = bytes_of_column(plan_);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      constexpr int kHalf = kWordBits / 2;
      const int first = chunk % 2 * kHalf;  // bit of a byte
      uint32_t operands[kRows][kHalf];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4& row = load.row[r];
        const uint32_t word = chunk < 2 ? row.x : chunk < 4 ? row.y : chunk < 6 ? row.z : row.w;
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
          const int place = (first + i) % kPlaces;
          operands[r][i] = word >> (first + i - place) & 0x01010101u << place;
        }
      }
      const int8_t* from = q_ + chunk_at(plan_, piece, chunk);
#pragma unroll
      for (int column = 0; column < COLUMNS; ++column) {
        if (column > 0 && column == plan_.columns) break;
        const uint4 four = *reinterpret_cast<const uint4*>(from + column * row_bytes);
        const uint32_t values[kHalf] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int i = 0; i < kHalf; ++i) {
            int32_t& sum = sums_[column][r][(first + i) % kPlaces];
            sum = dp4a(operands[r][i], values[i], sum);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void take(int column, int32_t (&sums)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sums[r] = 0;
#pragma unroll
      for (int place = 0; place < kPlaces; ++place) {
        sums[r] += sums_[column][r][place] >> place;
        sums_[column][r][place] = 0;
      }
    }
  }

 private:
  static constexpr int kPlaces = kWordBits / COLUMNS;  // bits of a byte whose sums are kept apart

  const int8_t* q_;
  const Plan& plan_;
  int32_t sums_[COLUMNS][kRows][kPlaces] = {};
};

// y of the round's rows from its integers: a lane a result.
__device__ __forceinline__ void finish(const LinearTask& task, const Plan& plan, const int32_t* totals,
                                       const float* scales, const int32_t* sums, int64_t first_row, int32_t rows) {
  const Weight& w = task.weight;
  const int32_t planes = task.x.planes;
  for (int32_t i = threadIdx.x; i < rows * plan.tokens; i += kThreads) {
    const int32_t token = i / rows;
    const int32_t in_round = i - token * rows;
    const int64_t row = first_row + in_round;
    if (row >= w.rows) continue;
    const float t = scaled_sum(w, row, [&](int32_t component, int32_t segment) {
      int32_t dots[2] = {};
#pragma unroll
      for (int plane = 0; plane < 2; ++plane) {
        if (plane == planes) break;
        const int32_t column = token * planes + plane;
        dots[plane] = 2 * totals[total_at(plan, column, in_round) + component * w.segments + segment] -
                      sums[column * w.segments + segment];
      }
      return planes == 1 ? static_cast<float>(dots[0]) : static_cast<float>(int64_t{256} * dots[0] + dots[1]);
    });
    store(task.result, scales[token], plan.token + token, row, t);
  }
}

template <int COLUMNS, bool WHOLE>
__global__ void __launch_bounds__(kThreads, 1) binary_bytes_kernel(LinearTask task, Plan plan) {
  int8_t* q = shared_memory<int8_t>();
  float* scales = reinterpret_cast<float*>(q + int64_t{plan.columns} * bytes_of_column(plan));
  int32_t* sums = reinterpret_cast<int32_t*>(scales + plan.tokens);
  uint32_t* largest = reinterpret_cast<uint32_t*>(sums + plan.columns * task.weight.segments);
  int32_t* totals = reinterpret_cast<int32_t*>(largest + plan.tokens * kWarps);
  work<BitsTimesBytes<COLUMNS>, COLUMNS, WHOLE, 1, kThreads>(
      task.weight, plan, task.result.bias, task.result.bias_dtype, q, totals,
      [&] { take_tokens(task, plan, q, scales, sums, largest); },
      [&](int64_t first_row, int32_t rows) { finish(task, plan, totals, scales, sums, first_row, rows); });
}

// ---- host ----------------------------------------------------------------------------------------------------------

// A launch of so many tokens; the number of blocks, or 0 where shared memory does not hold them.
int64_t plan_launch(const LinearTask& task, const Device& device, int32_t tokens, Plan* plan) {
  const Weight& w = task.weight;
  *plan = plan_of(w);
  plan->tokens = tokens;
  plan->columns = tokens * task.x.planes;
  const int64_t tokens_bytes = int64_t{plan->columns} * plan->loads * plan->lanes * kPieceTokens;
  const int64_t room = static_cast<int64_t>(device.shared_bytes) - tokens_bytes - bytes_besides(w, *plan);
  return room <= 0 ? 0 : divide_units(w, device, room, plan);
}

// The tokens of a launch: as many as are taken at once and fit; 0: not even one does.
int32_t tokens_at_once(const LinearTask& task, const Device& device) {
  const int32_t columns = has_whole_pieces(task.weight) ? kMostColumns : kMostUneven;
  Plan plan;
  int32_t tokens = static_cast<int32_t>(least<int64_t>(most<int64_t>(task.x.rows, 1), columns / task.x.planes));
  while (tokens > 0 && plan_launch(task, device, tokens, &plan) == 0) tokens /= 2;
  return tokens;
}

const char* refuses(const LinearTask& task, const Device& device) {
  if (task.source.activation == BITIMPL_ACTIVATION_FLOAT) return "it takes quantised activations";
  if (tokens_at_once(task, device) == 0) {
    return "a token of so many columns, or the sums of so many scale groups, are more than shared memory holds";
  }
  return nullptr;
}

bool prefers(const LinearTask& task, const Device&) { return task.x.rows * task.x.planes <= kMostColumns; }

// Only where the integers are the same however many threads make them.
bool quantises(const LinearTask& task, const Device&) {
  const int32_t activation = task.source.activation;
  return (activation == BITIMPL_ACTIVATION_INT8 || activation == BITIMPL_ACTIVATION_INT16) &&
         task.x.rows * task.x.row_bytes <= kMostQuantised;
}

int64_t scratch(const LinearTask&, const Device&) { return 0; }

int launch_columns(const LinearTask& task, const Plan& plan, const Grid& grid) {
  if (!has_whole_pieces(task.weight)) return launch(binary_bytes_kernel<kMostUneven, false>, grid, task, plan);
  if (plan.columns <= 1) return launch(binary_bytes_kernel<1, true>, grid, task, plan);
  if (plan.columns <= 2) return launch(binary_bytes_kernel<2, true>, grid, task, plan);
  if (plan.columns <= 4) return launch(binary_bytes_kernel<4, true>, grid, task, plan);
  return launch(binary_bytes_kernel<kMostColumns, true>, grid, task, plan);
}

int run(const LinearTask& task, const Device& device, Stream stream, void*) {
  const int32_t at_once = tokens_at_once(task, device);
  for (int64_t token = 0; token < task.x.rows; token += at_once) {
    Plan plan;
    const int64_t blocks =
        plan_launch(task, device, static_cast<int32_t>(least<int64_t>(at_once, task.x.rows - token)), &plan);
    plan.token = token;
    plan.quantises = quantises(task, device);
    const int64_t bytes = int64_t{plan.columns} * bytes_of_column(plan) + bytes_besides(task.weight, plan) +
                          bytes_of_totals(plan, plan.round);
    const Grid grid = {{static_cast<uint32_t>(blocks)}, {kThreads}, static_cast<size_t>(bytes), stream};
    const int status = launch_columns(task, plan, grid);
    if (status != BITIMPL_OK) return status;
  }
  return BITIMPL_OK;
}

}  // namespace

const LinearKernel kBinaryGemv = {"binary_gemv", refuses, prefers, quantises, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
