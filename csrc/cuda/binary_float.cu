// Activations as they are times binary weights, float32 products straight from the bits: a bit becomes the sign of a
// one, for all tokens at once, and a fused multiply-add each its product.
//
// A warp has eight rows in hand and a lane 32 columns of each, so that what it reads of the activations serves eight
// times. `kparts` warps share the columns of their rows, so that few rows keep every multiprocessor busy too, and the
// tokens lie in shared memory a tile of columns at a time. More tokens than kMostTokens read the weight again.
#include "bytes.cuh"
#include "kernels.h"
#include "quantize.cuh"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 8;          // of a warp
constexpr int kLaneColumns = 32;  // of each
constexpr int kChunks = kLaneColumns / 4;
constexpr int kMostTokens = 4;    // of one launch

struct Plan {
  int64_t token;  // the first
  int32_t tokens;
  int32_t kparts;         // warps that share the columns of their rows: a power of two
  int32_t words;          // of a row, 32 columns of one segment each
  int32_t segment_words;  // of a segment that is not the last
};

// A word of a row: up to 32 columns of one segment.
struct Part {
  int32_t segment;
  int32_t columns;
  int64_t first;  // column
};

__device__ __forceinline__ Part part_at(const Weight& w, const Plan& plan, int32_t word) {
  Part part;
  part.segment = word / plan.segment_words;
  part.first = part.segment * w.segment + int64_t{word - part.segment * plan.segment_words} * kLaneColumns;
  const int64_t end = least((part.segment + 1) * w.segment, w.cols);
  part.columns = static_cast<int32_t>(least<int64_t>(kLaneColumns, end - part.first));
  return part;
}

// Where four columns of a tile's word lie: what lanes read at once lies side by side, and what a lane writes of
// neighbouring columns in different banks.
__device__ __forceinline__ int32_t chunk_at(int32_t word, int32_t chunk) {
  return ((word / kWarp * kChunks + chunk) * kWarp + ((word % kWarp) ^ chunk)) * 4;
}

// Words [first, first + words) of the tokens, as float32; columns that do not exist are 0.
__device__ __forceinline__ void take_tile(const LinearTask& task, const Plan& plan, int32_t first, int32_t words,
                                          bool wide, float* tile) {
  const Source& s = task.source;
  for (int32_t i = threadIdx.x; i < plan.tokens * words * kChunks; i += kThreads) {
    const int32_t token = i / (words * kChunks);
    const int32_t word = i / kChunks - token * words;
    const int32_t chunk = i % kChunks;
    Four four = {};
    if (first + word < plan.words) {
      const Part part = part_at(task.weight, plan, first + word);
      const int64_t at = (plan.token + token) * s.row_stride + part.first + 4 * chunk;
      four = floats_of(load_four(s, at, part.columns - 4 * chunk, wide), s.dtype);
    }
    float* to = tile + token * words * kLaneColumns + chunk_at(word, chunk);
    *reinterpret_cast<float4*>(to) = {four.x[0], four.x[1], four.x[2], four.x[3]};
  }
}

// The lane's words of eight rows times its columns of the tile. `minus`: bits of -1, gone afterwards.
template <int TOKENS>
__device__ __forceinline__ void add_products(uint32_t (&minus)[kRows], const float* tile, int32_t token_floats,
                                             int32_t word, int32_t tokens, float (&sums)[TOKENS][kRows]) {
#pragma unroll 2  // more at once is more registers than there are
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    float x[TOKENS][4];
#pragma unroll
    for (int token = 0; token < TOKENS; ++token) {
      if (token > 0 && token == tokens) break;
      const float4 v = *reinterpret_cast<const float4*>(tile + token * token_floats + chunk_at(word, chunk));
      x[token][0] = v.x;
      x[token][1] = v.y;
      x[token][2] = v.z;
      x[token][3] = v.w;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = float_of_bits((minus[r] << (31 - i) & 0x80000000u) | 0x3f800000u);  // -1 or 1
#pragma unroll
        for (int token = 0; token < TOKENS; ++token) {
          if (token > 0 && token == tokens) break;
          sums[token][r] = fmaf(weight, x[token][i], sums[token][r]);
        }
      }
      minus[r] >>= 4;
    }
  }
}

template <int TOKENS>
__global__ void __launch_bounds__(kThreads, 2) binary_float_kernel(LinearTask task, Plan plan) {
  const Weight& w = task.weight;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int32_t row_sets = kWarps / plan.kparts;  // of a block
  const int64_t first_row = (int64_t{blockIdx.x} * row_sets + warp / plan.kparts) * kRows;
  const int32_t rows = static_cast<int32_t>(most<int64_t>(0, least<int64_t>(kRows, w.rows - first_row)));
  const int64_t row_bytes = ceil_div<int64_t>(w.cols, 8);
  const bool one_scale = w.components * w.segments == 1;  // of a row: taken at the end
  const bool wide = wide_loads(task.source);
  const int32_t tile_words = plan.kparts * kWarp;
  const int32_t word = warp % plan.kparts * kWarp + lane;  // of a tile
  float* tile = shared_memory<float>();
  float t[TOKENS][kRows] = {};
  for (int32_t first = 0; first < plan.words; first += tile_words) {
    if (first > 0) __syncthreads();  // the tile before has been read
    take_tile(task, plan, first, tile_words, wide, tile);
    __syncthreads();
    if (first + word >= plan.words) continue;
    const Part part = part_at(w, plan, first + word);
    for (int32_t component = 0; component < w.components; ++component) {
      const uint8_t* from = w.codes + (component * w.rows + first_row) * row_bytes + part.first / 8;
      uint32_t minus[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        uint32_t plus[1] = {0};
        if (r < rows) load_bytes(from + r * row_bytes, ceil_div(part.columns, 8), plus);
        minus[r] = ~plus[0];
      }
      if (one_scale) {
        add_products<TOKENS>(minus, tile, tile_words * kLaneColumns, word, plan.tokens, t);
        continue;
      }
      float sums[TOKENS][kRows] = {};
      add_products<TOKENS>(minus, tile, tile_words * kLaneColumns, word, plan.tokens, sums);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t row = least(first_row + r, w.rows - 1);
        const float scale = scale_at(w, component, row, part.segment);
#pragma unroll
        for (int token = 0; token < TOKENS; ++token) t[token][r] = fmaf(scale, sums[token][r], t[token][r]);
      }
    }
  }
  // One sum of a row, of all lanes and warps.
  __syncthreads();
#pragma unroll
  for (int token = 0; token < TOKENS; ++token) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sum = t[token][r];
      for (int mask = 1; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
      if (lane == 0) tile[(token * kWarps + warp) * kRows + r] = sum;
    }
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < plan.tokens * row_sets * kRows; i += kThreads) {
    const int32_t token = i / (row_sets * kRows);
    const int32_t set = i / kRows - token * row_sets;
    const int64_t row = (int64_t{blockIdx.x} * row_sets + set) * kRows + i % kRows;
    if (row >= w.rows) continue;
    const float* parts = tile + (token * kWarps + set * plan.kparts) * kRows + i % kRows;
    float sum = 0.0f;
    for (int32_t part = 0; part < plan.kparts; ++part) sum += parts[part * kRows];
    store(task.result, 1.0f, plan.token + token, row, one_scale ? scale_at(w, 0, row, 0) * sum : sum);
  }
}

const char* refuses(const LinearTask& task, const Device&) {
  return task.source.activation == BITIMPL_ACTIVATION_FLOAT ? nullptr : "it takes activations as they are";
}

bool prefers(const LinearTask& task, const Device& device) { return refuses(task, device) == nullptr; }
bool quantises(const LinearTask&, const Device&) { return true; }
int64_t scratch(const LinearTask&, const Device&) { return 0; }

int launch_tokens(const LinearTask& task, const Plan& plan, const Grid& grid) {
  if (plan.tokens <= 1) return launch(binary_float_kernel<1>, grid, task, plan);
  if (plan.tokens <= 2) return launch(binary_float_kernel<2>, grid, task, plan);
  return launch(binary_float_kernel<kMostTokens>, grid, task, plan);
}

int run(const LinearTask& task, const Device& device, Stream stream, void*) {
  const Weight& w = task.weight;
  Plan plan = {};
  plan.segment_words = static_cast<int32_t>(ceil_div<int64_t>(w.segment, kLaneColumns));
  const int64_t last = w.cols - (w.segments - 1) * w.segment;
  plan.words = (w.segments - 1) * plan.segment_words + static_cast<int32_t>(ceil_div<int64_t>(last, kLaneColumns));
  const int64_t row_sets = ceil_div<int64_t>(w.rows, kRows);
  plan.kparts = kWarps;
  while (plan.kparts > 1 && row_sets * plan.kparts / 2 >= int64_t{2} * kWarps * device.multiprocessors) {
    plan.kparts /= 2;
  }
  while (plan.kparts > 1 && plan.kparts / 2 * kWarp >= plan.words) plan.kparts /= 2;
  // Whatever the number of tokens, so that no answer depends on it.
  const size_t of_part = sizeof(float) * kMostTokens * kWarp * kLaneColumns;
  while (plan.kparts > 1 && of_part * static_cast<size_t>(plan.kparts) > device.shared_bytes) plan.kparts /= 2;
  const uint32_t blocks = static_cast<uint32_t>(ceil_div<int64_t>(row_sets, kWarps / plan.kparts));
  for (plan.token = 0; plan.token < task.x.rows; plan.token += kMostTokens) {
    plan.tokens = static_cast<int32_t>(least<int64_t>(kMostTokens, task.x.rows - plan.token));
    const size_t tile = size_t{kWarp} * kLaneColumns * static_cast<size_t>(plan.tokens * plan.kparts);
    const size_t parts = size_t{kMostTokens} * kThreads / kWarp * kRows;
    const Grid grid = {{blocks}, {kThreads}, sizeof(float) * most(tile, parts), stream};
    const int status = launch_tokens(task, plan, grid);
    if (status != BITIMPL_OK) return status;
  }
  return BITIMPL_OK;
}

}  // namespace

const LinearKernel kBinaryFloat = {"float", refuses, prefers, quantises, scratch, run};

}  // namespace cuda
}  // namespace bitimpl
