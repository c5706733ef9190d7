// The gradient of a linear layer towards its input: dx = dy * weight, with dy times the weight's scales as
// int8 per token and the packed bytes of the forward pass read along their columns.
//
// The sum runs over the weight's rows, and a byte of codes holds four (five) of them for one column: exactly
// the four neighbours along the sum that a register of an mma operand wants. So a lane loads eight columns of
// a row group, takes the digits apart (a byte a column, a word a row), transposes four words (a word a
// column, a byte a row), and has operands A whose rows are the columns of dx. base3's fifth rows of 32 row
// groups make another operand. Tokens are operand B; their integers are laid out in that order beforehand.
#include "../common/checks.h"
#include "block.cuh"
#include "bytes.cuh"
#include "weight.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kQuantizeThreads = 256;
constexpr int kSteps = 4;   // of columns that a block has in hand, one a warp
constexpr int kSplits = 2;  // of the weight's rows, each to a warp of its own
constexpr int kThreads = kSteps * kSplits * kWarp;
constexpr int kTokens = 32;  // of a block
constexpr int kTokenTiles = kTokens / 8;
constexpr int kLaneColumns = 8;
constexpr int kColumnTiles = kStep / 16;
constexpr int kSums = kColumnTiles * kTokenTiles * 4;  // of a lane
constexpr int kPairGroups = 2 * kBlockGroups;          // row groups of one product over 32 rows
constexpr int64_t kMostRows = (int64_t{1} << 24) - 1;
constexpr int64_t kAlignment = 16;

// The order of a token's integers. A chunk is what a warp takes at a time: two_bit, 8 row groups of 4 rows;
// base3, 32 row groups: in 4 products the first four rows of 8 groups each, in a fifth one the last rows of
// all.
template <int FORMAT>
struct Chunk;

template <>
struct Chunk<BITIMPL_TWO_BIT> {
  static constexpr int kPairs = 1;
  static constexpr int kGroups = kPairGroups;
  static constexpr int kBytes = 32;
  // The row of the chunk that byte `at` belongs to.
  static __device__ __forceinline__ int row_at(int at) { return at; }
};

template <>
struct Chunk<BITIMPL_BASE3> {
  static constexpr int kPairs = 4;
  static constexpr int kGroups = kPairs * kPairGroups;
  static constexpr int kBytes = 160;
  static __device__ __forceinline__ int row_at(int at) {
    if (at < 128) return at / 4 * 5 + at % 4;
    // Bytes 4 i .. 4 i + 3: the groups i, 8 + i, 16 + i, 24 + i.
    return ((at - 128) % 4 * kPairGroups + (at - 128) / 4) * 5 + 4;
  }
};

struct Gradient {
  Weight weight;
  bitimpl_matrix dy;
  bitimpl_matrix dx;
  int32_t segment;    // in hand
  int64_t row_bytes;  // of q: whole chunks
  int8_t* q;          // [components, tokens, row_bytes]
  float* scale;       // [components, tokens]
  int32_t* sums;      // of q, the same
};

// ---- dy as integers: a block a token and component
// ---------------------------------------------------------

template <int FORMAT>
__global__ void __launch_bounds__(kQuantizeThreads) quantize_gradient_kernel(Gradient task) {
  constexpr float kLimit = 127.0f;
  constexpr float kFloor = 1e-36f;  // whose factor is still finite
  constexpr int kChunkRows = Chunk<FORMAT>::kBytes;
  const Weight& w = task.weight;
  const int64_t token = blockIdx.x;
  const int32_t component = static_cast<int32_t>(blockIdx.y);
  const int64_t line = component * task.dy.rows + token;
  const auto value_at = [&](int64_t row) {
    return load_float(task.dy.data, task.dy.dtype, token * task.dy.row_stride + row) *
           scale_at(w, component, row, task.segment);
  };
  uint32_t largest = 0;  // magnitudes of floats order like their bits, and NaN comes out above infinity
  for (int64_t row = threadIdx.x; row < w.rows; row += kQuantizeThreads) {
    largest = most(largest, bits_of(fabsf(value_at(row))));
  }
  void* room = shared_memory<void>();
  largest = over_block(largest, static_cast<uint32_t*>(room), Larger{});
  const bool is_finite = finite(largest);
  const float amax = most(float_of_bits(is_finite ? largest : 0), kFloor);
  const float factor = kLimit / amax;
  int32_t sum = 0;
  for (int64_t at = 4 * static_cast<int64_t>(threadIdx.x); at < task.row_bytes; at += 4 * kQuantizeThreads) {
    const int64_t chunk = at / kChunkRows;
    uint32_t four = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row =
          chunk * kChunkRows + Chunk<FORMAT>::row_at(static_cast<int>(at - chunk * kChunkRows) + i);
      const int32_t q = is_finite && row < w.rows ? round_to_int(value_at(row) * factor) : 0;
      sum += q;
      four |= (static_cast<uint32_t>(q) & 0xff) << 8 * i;
    }
    *reinterpret_cast<uint32_t*>(task.q + line * task.row_bytes + at) = four;
  }
  sum = over_block(sum, static_cast<int32_t*>(room), Add{});
  if (threadIdx.x != 0) return;
  task.sums[line] = sum;
  task.scale[line] = is_finite ? amax / kLimit : NAN;
}

// ---- the product
// -------------------------------------------------------------------------------------------

// Four words of four bytes, transposed: out[i] is byte i of each.
__device__ __forceinline__ void transpose(uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                          uint32_t (&out)[4]) {
  const uint32_t ab_low = permute_bytes(a, b, 0x5140);
  const uint32_t ab_high = permute_bytes(a, b, 0x7362);
  const uint32_t cd_low = permute_bytes(c, d, 0x5140);
  const uint32_t cd_high = permute_bytes(c, d, 0x7362);
  out[0] = permute_bytes(ab_low, cd_low, 0x5410);
  out[1] = permute_bytes(ab_low, cd_low, 0x7632);
  out[2] = permute_bytes(ab_high, cd_high, 0x5410);
  out[3] = permute_bytes(ab_high, cd_high, 0x7632);
}

// sums += the products of a lane's operands: columns[half][i] is column i of the lane's eight, in half 0 the
// first 16 of the 32 rows; tokens: where the integers of the lane's token of each tile lie.
__device__ __forceinline__ void multiply(const uint32_t (&columns)[2][kLaneColumns],
                                         const int8_t* const (&tokens)[kTokenTiles], int64_t at,
                                         int32_t (&sums)[kSums]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int token = 0; token < kTokenTiles; ++token) {
    const int8_t* from = tokens[token] + at + 4 * t;
    const uint32_t b[2] = {*reinterpret_cast<const uint32_t*>(from),
                           *reinterpret_cast<const uint32_t*>(from + 16)};
#pragma unroll
    for (int tile = 0; tile < kColumnTiles; ++tile) {
      const uint32_t a[4] = {columns[0][2 * tile], columns[0][2 * tile + 1], columns[1][2 * tile],
                             columns[1][2 * tile + 1]};
      int32_t (&d)[4] = *reinterpret_cast<int32_t (*)[4]>(&sums[4 * (tile * kTokenTiles + token)]);
      mma_16x8x32(d, a, b);
    }
  }
}

// sums over chunks split, split + kSplits, .. of one component.
template <int FORMAT>
__device__ __forceinline__ void sum_chunks(const Weight& w, int32_t component, const Step& step, int split,
                                           const int8_t* const (&tokens)[kTokenTiles],
                                           int32_t (&sums)[kSums]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  constexpr int kPairs = Chunk<FORMAT>::kPairs;
  const int lane = threadIdx.x % kWarp;
  const int column = lane / 4 * kLaneColumns;
  const int valid = step.columns - column;
  const int64_t chunks = ceil_div<int64_t>(w.groups, Chunk<FORMAT>::kGroups);
  for (int64_t chunk = split; chunk < chunks; chunk += kSplits) {
    const int64_t at = chunk * Chunk<FORMAT>::kBytes;
    uint32_t fifth[2][2][kPairs];  // [half][word][pair]
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      uint32_t columns[2][kLaneColumns];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t group =
            chunk * Chunk<FORMAT>::kGroups + pair * kPairGroups + half * kBlockGroups + lane % 4;
        uint32_t words[2] = {0, 0};
        if (group < w.groups && valid > 0)
          load_bytes(codes_at(w, group, component, step) + column, valid, words);
#pragma unroll
        for (int word = 0; word < 2; ++word) {
          uint32_t digits[kRows];
          digits_of<FORMAT>(words[word], digits);
          uint32_t four[4];
          transpose(digits[0], digits[1], digits[2], digits[3], four);
#pragma unroll
          for (int i = 0; i < 4; ++i) columns[half][4 * word + i] = four[i];
          fifth[half][word][pair] = digits[kRows - 1];
        }
      }
      multiply(columns, tokens, at + 32 * pair, sums);
    }
    if (FORMAT == BITIMPL_BASE3) {
      uint32_t columns[2][kLaneColumns];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int word = 0; word < 2; ++word) {
          const uint32_t (&pairs)[kPairs] = fifth[half][word];
          uint32_t four[4];
          transpose(pairs[0], pairs[1 % kPairs], pairs[2 % kPairs], pairs[3 % kPairs], four);
#pragma unroll
          for (int i = 0; i < 4; ++i) columns[half][4 * word + i] = four[i];
        }
      }
      multiply(columns, tokens, at + 128, sums);
    }
  }
}

// What the lanes of a warp keep in shared memory: value i of each lane beside those of the others.
template <class T>
__device__ __forceinline__ T* kept(T* room, int slot) {
  return room + static_cast<int64_t>(slot) * kSums * kWarp + threadIdx.x % kWarp;
}

// Blocks: steps of the segment, four at a time, and tokens.
template <int FORMAT>
__global__ void __launch_bounds__(kThreads) input_grad_kernel(Gradient task) {
  const Weight& w = task.weight;
  const int lane = threadIdx.x % kWarp;
  const int slot = threadIdx.x / kWarp % kSteps;
  const int split = threadIdx.x / kWarp / kSteps;
  const int32_t first_step = task.segment * w.segment_steps;
  const int32_t index = first_step + static_cast<int32_t>(blockIdx.x) * kSteps + slot;
  const bool exists = index < least(first_step + w.segment_steps, w.steps);
  const Step step = step_at(w, exists ? index : first_step);
  int32_t* others = kept(shared_memory<int32_t>(), slot);
  float* totals = kept(reinterpret_cast<float*>(shared_memory<int32_t>() + kSteps * kSums * kWarp), slot);
  const int64_t tiles = ceil_div<int64_t>(task.dy.rows, kTokens);
  for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
    for (int32_t component = 0; component < w.components; ++component) {
      const int64_t line = component * task.dy.rows;
      int32_t sums[kSums] = {};
      if (exists) {
        const int8_t* tokens[kTokenTiles];
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
          // Tokens past the last one repeat it; nothing is stored of them.
          const int64_t token = least<int64_t>(tile * kTokens + 8 * i + lane / 4, task.dy.rows - 1);
          tokens[i] = task.q + (line + token) * task.row_bytes;
        }
        sum_chunks<FORMAT>(w, component, step, split, tokens, sums);
      }
      if (split == 1) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) others[i * kWarp] = sums[i];
      }
      __syncthreads();
      if (split == 0 && exists) {
        const bool last = component + 1 == w.components;
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int64_t token = tile * kTokens + 8 * i + 2 * (lane % 4) + side;
            if (token >= task.dy.rows) continue;
            const uint32_t offset = static_cast<uint32_t>(task.sums[line + token]);
            const float scale = task.scale[line + token];
            float value[kLaneColumns];
#pragma unroll
            for (int column = 0; column < kLaneColumns; ++column) {
              const int at = 4 * (column / 2 * kTokenTiles + i) + 2 * (column % 2) + side;
              const uint32_t digits =
                  static_cast<uint32_t>(sums[at]) + static_cast<uint32_t>(others[at * kWarp]);
              const float before = component == 0 ? 0.0f : totals[at * kWarp];
              value[column] = before + scale * static_cast<float>(static_cast<int32_t>(digits - offset));
              if (!last) totals[at * kWarp] = value[column];
            }
            if (!last) continue;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int column = lane / 4 * kLaneColumns + 4 * half;
              const float four[4] = {value[4 * half], value[4 * half + 1], value[4 * half + 2],
                                     value[4 * half + 3]};
              store_floats(task.dx.data, task.dx.dtype, token * task.dx.row_stride + step.first + column,
                           four, step.columns - column);
            }
          }
        }
      }
      __syncthreads();
    }
  }
}

// ---- starts
// --------------------------------------------------------------------------------------------------

int64_t row_bytes_of(const Weight& w) {
  if (w.format == BITIMPL_BASE3) {
    return ceil_div<int64_t>(w.groups, Chunk<BITIMPL_BASE3>::kGroups) * Chunk<BITIMPL_BASE3>::kBytes;
  }
  return ceil_div<int64_t>(w.groups, Chunk<BITIMPL_TWO_BIT>::kGroups) * Chunk<BITIMPL_TWO_BIT>::kBytes;
}

int64_t workspace_of(const Weight& w, int64_t tokens) {
  const int64_t line = row_bytes_of(w) + static_cast<int64_t>(sizeof(float) + sizeof(int32_t));
  return w.components * tokens * line + kAlignment - 1;
}

template <int FORMAT>
int start(Gradient task, Stream stream) {
  const Weight& w = task.weight;
  const Grid quantize = {{static_cast<uint32_t>(task.dy.rows), static_cast<uint32_t>(w.components)},
                         {kQuantizeThreads},
                         kQuantizeThreads / kWarp * sizeof(uint32_t),
                         stream};
  const int64_t tiles = least(ceil_div<int64_t>(task.dy.rows, kTokens), int64_t{65535});
  const size_t room = sizeof(int32_t) * kSteps * kSums * kWarp;
  for (task.segment = 0; task.segment < w.segments; ++task.segment) {
    const int32_t steps = least(w.segment_steps, w.steps - task.segment * w.segment_steps);
    // dy's integers hold the segment's scales.
    int status = BITIMPL_OK;
    if (task.segment == 0 || w.scale_group_stride != 0) {
      status = launch(quantize_gradient_kernel<FORMAT>, quantize, task);
    }
    const Grid grid = {{static_cast<uint32_t>(ceil_div(steps, kSteps)), static_cast<uint32_t>(tiles)},
                       {kThreads},
                       w.components > 1 ? 2 * room : room,
                       stream};
    if (status == BITIMPL_OK) status = launch(input_grad_kernel<FORMAT>, grid, task);
    if (status != BITIMPL_OK) return status;
  }
  return BITIMPL_OK;
}

int check_weight_of_gradient(const bitimpl_weight* weight, bool with_scales) {
  int status = check_weight(weight, with_scales);
  if (status == BITIMPL_OK) status = check_format(weight->format);
  if (status != BITIMPL_OK) return status;
  if (weight->rows > kMostRows) {
    return fail(BITIMPL_UNSUPPORTED,
                "the weight has %lld rows; its int8 gradient is exact up to %lld: cut it", show(weight->rows),
                show(kMostRows));
  }
  return BITIMPL_OK;
}

int check_tokens_of_gradient(const bitimpl_weight& weight, int64_t tokens) {
  const double bytes =
      static_cast<double>(tokens) * static_cast<double>(weight.rows + 512) * weight.components;
  if (tokens >= 0 && tokens <= kMaxDimension && bytes <= kMaxWorkspace) return BITIMPL_OK;
  return fail(BITIMPL_INVALID_ARGUMENT,
              "%lld rows of %lld gradients: rows must be at least 0 and small enough to address",
              show(tokens), show(weight.rows));
}

int check_call(const bitimpl_weight* weight, const bitimpl_matrix* dy, const bitimpl_matrix* dx) {
  int status = check_weight_of_gradient(weight, true);
  if (status == BITIMPL_OK) status = check_matrix(dy, "dy");
  if (status == BITIMPL_OK) status = check_matrix(dx, "dx");
  if (status == BITIMPL_OK) status = check_tokens_of_gradient(*weight, dy->rows);
  if (status != BITIMPL_OK) return status;
  if (dy->cols != weight->rows) {
    return fail(BITIMPL_INVALID_ARGUMENT, "dy has %lld columns, the weight %lld rows: they must agree",
                show(dy->cols), show(weight->rows));
  }
  if (dx->cols != weight->cols || dx->rows != dy->rows) {
    return fail(BITIMPL_INVALID_ARGUMENT, "dx is %lld x %lld: make it %lld x %lld", show(dx->rows),
                show(dx->cols), show(dy->rows), show(weight->cols));
  }
  return BITIMPL_OK;
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int64_t bitimpl_cuda_input_grad_workspace(const bitimpl_weight* weight, int64_t rows) {
  clear_error();
  if (check_weight_of_gradient(weight, false) != BITIMPL_OK) return -1;
  if (check_tokens_of_gradient(*weight, rows) != BITIMPL_OK) return -1;
  return rows == 0 ? 0 : workspace_of(describe(*weight), rows);
}

int bitimpl_cuda_input_grad(const bitimpl_weight* weight, const bitimpl_matrix* dy, const bitimpl_matrix* dx,
                            void* workspace, int64_t workspace_bytes, int32_t device, void* stream) {
  clear_error();
  const int status = check_call(weight, dy, dx);
  if (status != BITIMPL_OK) return status;
  if (device_at(device) == nullptr) return last_status();
  if (dy->rows == 0) return BITIMPL_OK;
  Gradient task = {};
  task.weight = describe(*weight);
  task.dy = *dy;
  task.dx = *dx;
  const int64_t needed = workspace_of(task.weight, dy->rows);
  if (workspace == nullptr || workspace_bytes < needed) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "workspace holds %lld bytes at %p, the call needs %lld: size it with "
                "bitimpl_cuda_input_grad_workspace",
                show(workspace_bytes), workspace, show(needed));
  }
  const int64_t lines = task.weight.components * dy->rows;
  task.row_bytes = row_bytes_of(task.weight);
  task.q = reinterpret_cast<int8_t*>((reinterpret_cast<uintptr_t>(workspace) + kAlignment - 1) / kAlignment *
                                     kAlignment);
  task.scale = reinterpret_cast<float*>(task.q + lines * task.row_bytes);
  task.sums = reinterpret_cast<int32_t*>(task.scale + lines);
  const DeviceGuard current(device);
  if (weight->format == BITIMPL_BASE3) return start<BITIMPL_BASE3>(task, stream);
  return start<BITIMPL_TWO_BIT>(task, stream);
}

}  // extern "C"
