// Activations as they are, float32 products straight from packed bytes: a digit becomes the last bits of the
// float 2^23 + digit, of which one subtraction makes a code, exact, and a fused multiply-add its product.
//
// A block has kWarps warps: `kparts` of them share the columns of a row block, so that few rows keep every
// multiprocessor busy too, and the tokens lie in shared memory a tile of columns at a time. More tokens than
// kTokens read the weight again.
#include "kernels.h"
#include "quantize.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kLaneColumns = 16;                   // of one load
constexpr int kLanesAStep = kStep / kLaneColumns;  // 4
constexpr int kStepsALoad = kWarp / kLanesAStep / kBlockGroups;
constexpr int kTileSteps = 32;
constexpr int kMostTokens = 4;  // of one launch

struct Plan {
  int64_t token;  // the first
  int32_t tokens;
  int32_t kparts;  // warps that share the columns of a row block: a power of two
};

// The digits of a word of codes, bytes in words: of plane j as multiples of one_of(j).
template <int FORMAT>
__device__ __forceinline__ void digits_of(uint32_t word, uint32_t (&digits)[Digits<FORMAT>::kRows]) {
  Digits<FORMAT>::operands(word, digits);
  if (FORMAT == BITIMPL_BASE3) {  // quotients; each is at least three times the next, byte by byte
#pragma unroll
    for (int j = 0; j + 1 < Digits<FORMAT>::kRows; ++j) digits[j] -= 3 * digits[j + 1];
  }
}

// TWO_BIT digits stay where they lie in the byte.
template <int FORMAT>
__device__ __forceinline__ constexpr float one_of(int j) {
  return FORMAT == BITIMPL_TWO_BIT ? static_cast<float>(1 << 2 * j) : 1.0f;
}

// Where four columns of a tile's step lie: the pieces that the four lanes of a step read at once side by side.
__device__ __forceinline__ int32_t piece_at(int32_t step, int32_t lane_of_step, int32_t word) {
  return step * kStep + (word * kLanesAStep + lane_of_step) * 4;
}

// Steps [first, first + steps) of the tokens, as float32: token after token, kTileSteps steps each.
__device__ __forceinline__ void take_tile(const LinearTask& task, const Plan& plan, int32_t first, int32_t steps,
                                          bool wide, float* tile) {
  constexpr int kPieces = kStep / 4;
  const Source& s = task.source;
  for (int32_t i = threadIdx.x; i < plan.tokens * steps * kPieces; i += kThreads) {
    const int32_t token = i / (steps * kPieces);
    const int32_t in_token = i - token * steps * kPieces;
    const int32_t in_tile = in_token / kPieces;
    const int32_t piece = in_token % kPieces;
    const Step step = step_at(task.weight, first + in_tile);
    const int64_t at = (plan.token + token) * s.row_stride + step.first + 4 * piece;
    const Four four = floats_of(load_four(s, at, step.columns - 4 * piece, wide), s.dtype);
    float* to = tile + token * kTileSteps * kStep + piece_at(in_tile, piece / 4, piece % 4);
    *reinterpret_cast<float4*>(to) = {four.x[0], four.x[1], four.x[2], four.x[3]};
  }
}

template <int FORMAT, int TOKENS>
__device__ __forceinline__ void add_products(const uint4& codes, const float* x, const Plan& plan,
                                             float (&sums)[TOKENS][Digits<FORMAT>::kRows]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    uint32_t digits[kRows];
    digits_of<FORMAT>(words[word], digits);
    float weights[kRows][4];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t bits = permute_bytes(digits[j], 0x4b000000u, 0x7640u | static_cast<uint32_t>(i));
        weights[j][i] = float_of_bits(bits) - (8388608.0f + one_of<FORMAT>(j));
      }
    }
#pragma unroll
    for (int token = 0; token < TOKENS; ++token) {
      if (token == plan.tokens) break;
      const float4 v = *reinterpret_cast<const float4*>(x + token * kTileSteps * kStep + piece_at(0, 0, word));
      const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[token][j] = fmaf(weights[j][i], values[i], sums[token][j]);
      }
    }
  }
}

// t += scale * sums of a segment, and sums begin again.
template <int FORMAT, int TOKENS>
__device__ __forceinline__ void scale_sums(const Weight& w, int32_t component, int64_t group, int32_t segment,
                                           float (&sums)[TOKENS][Digits<FORMAT>::kRows],
                                           float (&t)[TOKENS][Digits<FORMAT>::kRows]) {
#pragma unroll
  for (int j = 0; j < Digits<FORMAT>::kRows; ++j) {
    const int64_t row = least(group * Digits<FORMAT>::kRows + j, w.rows - 1);
    const float scale = scale_at(w, component, row, segment) / one_of<FORMAT>(j);
#pragma unroll
    for (int token = 0; token < TOKENS; ++token) {
      t[token][j] = fmaf(scale, sums[token][j], t[token][j]);
      sums[token][j] = 0.0f;
    }
  }
}

template <int FORMAT, int TOKENS>
__global__ void __launch_bounds__(kThreads, 2) float_kernel(LinearTask task, Plan plan) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  constexpr int kAtOnce = TOKENS <= 2 ? 4 : 2;  // loads in flight
  const Weight& w = task.weight;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int quarter = lane % kLanesAStep;
  const int lane_group = lane / kLanesAStep % kBlockGroups;
  const int lane_step = lane / kLanesAStep / kBlockGroups;
  const int32_t warp_blocks = kWarps / plan.kparts;  // row blocks of a block
  const int64_t first_block = int64_t{blockIdx.x} * warp_blocks;
  const int64_t group = (first_block + warp / plan.kparts) * kBlockGroups + lane_group;
  const bool wide = wide_loads(task.source);
  float* tile = shared_memory<float>();
  float t[TOKENS][kRows] = {};
  for (int32_t first = 0; first < w.steps; first += kTileSteps) {
    const int32_t steps = least(kTileSteps, w.steps - first);
    if (first > 0) __syncthreads();  // the tile before has been read
    take_tile(task, plan, first, steps, wide, tile);
    __syncthreads();
    if (group >= w.groups) continue;
    for (int32_t component = 0; component < w.components; ++component) {
      float sums[TOKENS][kRows] = {};
      int32_t segment = -1;
      for (int32_t at = warp % plan.kparts * kStepsALoad + lane_step; at < steps;
           at += kAtOnce * plan.kparts * kStepsALoad) {
        uint4 codes[kAtOnce];
        int32_t segments[kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const int32_t i = at + u * plan.kparts * kStepsALoad;
          if (i >= steps) continue;
          const Step step = step_at(w, first + i);
          segments[u] = step.segment;
          codes[u] = load_codes(codes_at(w, group, component, step) + quarter * kLaneColumns,
                                step.columns - quarter * kLaneColumns);
        }
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const int32_t i = at + u * plan.kparts * kStepsALoad;
          if (i >= steps) continue;
          if (segments[u] != segment) {
            if (segment >= 0) scale_sums<FORMAT, TOKENS>(w, component, group, segment, sums, t);
            segment = segments[u];
          }
          add_products<FORMAT, TOKENS>(codes[u], tile + piece_at(i, quarter, 0), plan, sums);
        }
      }
      if (segment >= 0) scale_sums<FORMAT, TOKENS>(w, component, group, segment, sums, t);
    }
  }
  // One sum of a row, of all lanes and warps.
  __syncthreads();
  constexpr int kBlockRows = kBlockGroups * kRows;
#pragma unroll
  for (int token = 0; token < TOKENS; ++token) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      float sum = t[token][j];
      for (int mask = 1; mask < kLanesAStep; mask *= 2) sum += shuffle_xor(sum, mask);
      sum += shuffle_xor(sum, kWarp / kStepsALoad);
      if (quarter == 0 && lane_step == 0) tile[(token * kWarps + warp) * kBlockRows + lane_group * kRows + j] = sum;
    }
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < plan.tokens * warp_blocks * kBlockRows; i += kThreads) {
    const int32_t token = i / (warp_blocks * kBlockRows);
    const int32_t in_block = i % (warp_blocks * kBlockRows);
    const int64_t row = first_block * kBlockRows + in_block;
    if (row >= w.rows) continue;
    const float* parts = tile + (token * kWarps + in_block / kBlockRows * plan.kparts) * kBlockRows;
    float sum = 0.0f;
    for (int32_t part = 0; part < plan.kparts; ++part) sum += parts[part * kBlockRows + in_block % kBlockRows];
    store(task.result, 1.0f, plan.token + token, row, sum);
  }
}

const char* refuses(const LinearTask& task, const Device&) {
  return task.source.activation == BITIMPL_ACTIVATION_FLOAT ? nullptr : "it takes activations as they are";
}

bool prefers(const LinearTask& task, const Device& device) { return refuses(task, device) == nullptr; }
bool quantises(const LinearTask&, const Device&) { return true; }
int64_t scratch(const LinearTask&, const Device&) { return 0; }

template <int FORMAT>
int launch_tokens(const LinearTask& task, const Plan& plan, const Grid& grid) {
  if (plan.tokens <= 1) return launch(float_kernel<FORMAT, 1>, grid, task, plan);
  if (plan.tokens <= 2) return launch(float_kernel<FORMAT, 2>, grid, task, plan);
  return launch(float_kernel<FORMAT, kMostTokens>, grid, task, plan);
}

int run(const LinearTask& task, const Device& device, Stream stream, void*) {
  const Weight& w = task.weight;
  Plan plan = {};
  const int64_t row_blocks = ceil_div<int64_t>(w.groups, kBlockGroups);
  plan.kparts = kWarps;
  while (plan.kparts > 1 && row_blocks * plan.kparts / 2 >= int64_t{2} * kWarps * device.multiprocessors) {
    plan.kparts /= 2;
  }
  const uint32_t blocks = static_cast<uint32_t>(ceil_div<int64_t>(row_blocks, kWarps / plan.kparts));
  for (plan.token = 0; plan.token < task.x.rows; plan.token += kMostTokens) {
    plan.tokens = static_cast<int32_t>(least<int64_t>(kMostTokens, task.x.rows - plan.token));
    const size_t bytes = sizeof(float) * static_cast<size_t>(plan.tokens <= 2 ? plan.tokens : kMostTokens) *
                         kTileSteps * kStep;
    const Grid grid = {{blocks}, {kThreads}, bytes, stream};
    const int status = w.format == BITIMPL_BASE3 ? launch_tokens<BITIMPL_BASE3>(task, plan, grid)
                                                 : launch_tokens<BITIMPL_TWO_BIT>(task, plan, grid);
    if (status != BITIMPL_OK) return status;
  }
  return BITIMPL_OK;
}

}  // namespace

const LinearKernel kFloat = {"float", refuses, prefers, quantises, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
