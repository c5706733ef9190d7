// A block's part of a product of bits on tensor cores (bmma.cu): where its windows and rows lie, their words on the
// way to shared memory, the products.
//
// Stages hold a step's words of every position (a window of x) and of every row of the weight, a line of 8 * SLICES
// words each. A product takes a slice, 8 words of 16 positions and 8 rows. Four words (a quarter) are what a row of
// load_matrices() is; a line's quarters are permuted so that those of eight lines lie in different banks.
//
// Which position (row of the weight) a line of a stage holds is free, too: such that the positions and rows whose sums
// a lane ends up with follow one another by fours (by eights, for bytes of signs), and y is stored in whole sectors.
#ifndef BITIMPL_CUDA_BMMA_TILE_CUH
#define BITIMPL_CUDA_BMMA_TILE_CUH

#include "bits.cuh"
#include "mma.cuh"

namespace bitimpl {
namespace cuda {

constexpr int kSliceWords = 8;
constexpr int kQuarterWords = 4;
constexpr int64_t kNowhere = -16;  // bytes to what is not there: copies of zeros want aligned addresses, too
constexpr int kMaskedTaps = 32;  // of windows at the border, as bits of a word

// Warps side by side along positions and rows, and (WARPS_K > 1, as many as slices) one behind the other along the sum;
// TILES: products of 16 positions, of 8 rows, of a warp. BLOCKS: how many are to run on a multiprocessor.
template <int WARPS_M, int WARPS_N, int WARPS_K, int TILES_M, int TILES_N, int SLICES, int STAGES, int BLOCKS>
struct BlockShape {
  static constexpr int kWarpsM = WARPS_M;
  static constexpr int kWarpsN = WARPS_N;
  static constexpr int kWarpsK = WARPS_K;
  static constexpr int kTilesM = TILES_M;
  static constexpr int kTilesN = TILES_N;
  static constexpr int kSlices = SLICES;
  static constexpr int kStages = STAGES;
  static constexpr int kBlocks = BLOCKS;
  static constexpr int kWarpPositions = 16 * TILES_M;
  static constexpr int kWarpRows = 8 * TILES_N;
  static constexpr int kPositions = WARPS_M * kWarpPositions;
  static constexpr int kRows = WARPS_N * kWarpRows;
  static constexpr int kThreads = WARPS_M * WARPS_N * WARPS_K * kWarp;
  static constexpr int kStepWords = SLICES * kSliceWords;
  static constexpr int kStageWords = (kPositions + kRows) * kStepWords;
  static constexpr int kLanePositions = 2 * TILES_M;
  static constexpr int kLaneRows = 2 * TILES_N;
  static_assert(WARPS_K == 1 || (WARPS_K == SLICES && WARPS_M == 1 && WARPS_N == 1), "a slice for each warp");
  static_assert(TILES_M % 2 == 0 && TILES_N % 4 == 0, "positions by fours, rows by eights");
};

enum Stores : int32_t {
  kByRow,       // four neighbouring rows of the weight lie together in y, at a multiple of four elements
  kByPosition,  // four neighbouring positions do
  kOneByOne,
};

struct BmmaPlan {
  int32_t positions;  // of all samples
  int32_t position_tiles;
  int32_t row_tiles;  // of a group
  int32_t stores;     // of Stores, where y is not of signs
  // The positions of a lane l / 4 are, but for the warp's first: fours_step * (i / 4) + one_step * (i % 4) +
  // lane_step * (l / 4); its rows 32 * (i / 8) + four_rows_step * (i / 4 % 2) + i % 4 + lane_rows_step * (l % 4).
  int32_t fours_step;
  int32_t one_step;
  int32_t lane_step;
  int32_t four_rows_step;
  int32_t lane_rows_step;
};

struct BmmaBlock {
  int32_t first_position;
  int32_t group;
  int32_t first_row;  // in the group
};

struct BmmaLane {
  int k;  // slice that the warp takes, where each takes one
  int first_line;      // of the stage's positions: the warp's
  int first_row_line;  // of the stage's rows
  int g;
  int t;
};

// A window in x.
struct alignas(16) WindowAt {
  int32_t at[3];   // INT32_MIN: there is none
  int32_t sample;  // -1: there is none
};

// A block's shared memory. Lines are those of a stage, rows in the order of the weight.
template <class S>
struct alignas(16) Tables {
  uint32_t stages[S::kStages * S::kStageWords];
  int32_t partial[S::kWarpsK == 1 ? 1 : S::kWarpsK - 1][S::kWarpsK == 1 ? 4 : 4 * S::kTilesM * S::kTilesN * kWarp];
  WindowAt window[S::kPositions];
  float lower[S::kRows], upper[S::kRows], least[S::kRows], most[S::kRows];
  float scale[S::kRows];
  float bias[S::kRows];
  int32_t of_row[S::kRows];            // what a dot product begins with: all but set(x) and set(x & w)
  int64_t from[S::kPositions];         // bytes from task.x on to the window's first pixel; kNowhere: there is none
  int64_t place[S::kPositions];        // in y
  int64_t row_from[S::kRows];          // bytes from the component's first row on; kNowhere: there is none
  int32_t of_position[S::kPositions];  // -2 set(x)
  float x_scale[S::kPositions];
  uint32_t outside[S::kPositions];     // taps outside the image, as bits; 1 for any, where there are more than 32
};

// Blocks in bands of eight tiles of positions, so that those at work at a time share rows and windows.
template <class S>
__device__ __forceinline__ BmmaBlock bmma_block(const BmmaPlan& plan) {
  constexpr uint32_t kBand = 8;
  const uint32_t tiles = static_cast<uint32_t>(plan.position_tiles);
  const uint32_t row_tiles = static_cast<uint32_t>(plan.row_tiles);
  const uint32_t group = blockIdx.x / (tiles * row_tiles);
  uint32_t rest = blockIdx.x - group * (tiles * row_tiles);
  const uint32_t band = rest / (kBand * row_tiles);
  rest -= band * (kBand * row_tiles);
  const uint32_t wide = least(kBand, tiles - band * kBand);
  const uint32_t row_tile = rest / wide;
  BmmaBlock block;
  block.first_position = static_cast<int32_t>((band * kBand + rest - row_tile * wide) * S::kPositions);
  block.group = static_cast<int32_t>(group);
  block.first_row = static_cast<int32_t>(row_tile * S::kRows);
  return block;
}

template <class S>
__device__ __forceinline__ BmmaLane bmma_lane() {
  const int warp = threadIdx.x / kWarp;
  BmmaLane lane;
  lane.k = warp / (S::kWarpsM * S::kWarpsN);
  lane.first_line = warp % S::kWarpsM * S::kWarpPositions;
  lane.first_row_line = warp / S::kWarpsM % S::kWarpsN * S::kWarpRows;
  lane.g = threadIdx.x % kWarp / 4;
  lane.t = threadIdx.x % 4;
  return lane;
}

// The block's position that a line of a stage holds, and the row.
template <class S>
__device__ __forceinline__ int32_t position_of_line(const BmmaPlan& plan, int line) {
  const int inside = line % S::kWarpPositions;
  const int i = inside / 8;
  return line - inside + i / 4 * plan.fours_step + i % 4 * plan.one_step + inside % 8 * plan.lane_step;
}

__device__ __forceinline__ int32_t four_rows_of(const BmmaPlan& plan, int four, int t) {
  return four / 2 * 32 + four % 2 * plan.four_rows_step + t * plan.lane_rows_step;
}

template <class S>
__device__ __forceinline__ int32_t row_of_line(const BmmaPlan& plan, int line) {
  const int inside = line % S::kWarpRows;
  const int i = inside / 8 * 2 + inside % 2;
  return line - inside + four_rows_of(plan, i / 4, inside % 8 / 2) + i % 4;
}

// The first word of a quarter in the stage's line.
template <class S>
__device__ __forceinline__ int quarter_of_line(int quarter, int line) {
  static_assert(S::kSlices == 2 || S::kSlices == 4, "lines of 64 or 128 bytes");
  return line * S::kStepWords + (quarter ^ (S::kSlices == 2 ? line >> 1 & 3 : line & 7)) * kQuarterWords;
}

// Where windows and rows begin, in x, w and y.
template <class S>
__device__ __forceinline__ void place_lines(const BitTask& task, const BmmaPlan& plan, const BmmaBlock& block,
                                            Tables<S>& tables) {
  const Windows& v = task.windows;
  for (int line = threadIdx.x; line < S::kPositions; line += S::kThreads) {
    const int32_t position = block.first_position + position_of_line<S>(plan, line);
    if (position >= plan.positions) {
      tables.window[line] = {{INT32_MIN, 0, 0}, -1};
      tables.from[line] = kNowhere;
      tables.place[line] = 0;
      tables.x_scale[line] = 0.0f;
      continue;
    }
    const uint32_t of_sample = static_cast<uint32_t>(v.positions);
    const uint32_t sample = static_cast<uint32_t>(position) / of_sample;
    uint32_t rest = static_cast<uint32_t>(position) - sample * of_sample;
    Place place;
    place.sample = sample;
    WindowAt window;
    window.sample = static_cast<int32_t>(sample);
#pragma unroll
    for (int d = 2; d >= 0; --d) {
      const uint32_t slower = rest / static_cast<uint32_t>(v.out[d]);
      place.at[d] = static_cast<int32_t>(rest - slower * static_cast<uint32_t>(v.out[d]));
      window.at[d] = place.at[d] * v.stride[d] - v.before[d];
      rest = slower;
    }
    tables.window[line] = window;
    const int64_t pixel = (int64_t{window.at[0]} * v.size[1] + window.at[1]) * v.size[2] + window.at[2];
    tables.from[line] = 4 * (window.sample * v.pixels + pixel) * task.pixel_words;
    tables.place[line] = place_of(task.result, place);
    tables.x_scale[line] = task.x_scale[sample];
  }
  for (int line = threadIdx.x; line < S::kRows; line += S::kThreads) {
    const int32_t row = block.first_row + row_of_line<S>(plan, line);
    const int64_t first = 4 * (block.group * task.group_rows + row) * task.row_words;
    tables.row_from[line] = row < task.group_rows ? first : kNowhere;
  }
}

// Whether a distance in bytes is not kNowhere, of a row or of a position that is a pixel: said by one word of it.
__device__ __forceinline__ bool is_there(int64_t bytes) { return static_cast<int32_t>(bytes >> 32) >= 0; }

// Whether the pixel so far beyond the window's first lies in the image.
__device__ __forceinline__ bool holds(const Windows& v, const WindowAt& window, const int32_t (&beyond)[3]) {
  return static_cast<uint32_t>(window.at[0] + beyond[0]) < static_cast<uint32_t>(v.size[0]) &&
         static_cast<uint32_t>(window.at[1] + beyond[1]) < static_cast<uint32_t>(v.size[1]) &&
         static_cast<uint32_t>(window.at[2] + beyond[2]) < static_cast<uint32_t>(v.size[2]);
}

// Copies of a step's words, CHUNK at a time, WINDOWS from pixels that may lie outside the image; else a position is a
// pixel.
template <class S, int CHUNK, bool WINDOWS, bool ONE_UNIT>
struct Copies {
  static constexpr int kOfLine = S::kStepWords / CHUNK;
  static constexpr int kLinesAtOnce = S::kThreads / kOfLine;
  static_assert(S::kPositions % kLinesAtOnce == 0 && S::kRows % kLinesAtOnce == 0, "whole passes");

  int32_t index;     // of the unit
  int32_t words;     // of the unit; 0 behind the last
  int32_t done;      // of the words: those of earlier steps
  int32_t tap_words;  // of the unit
  int64_t x_from;    // of the unit in a pixel
  int64_t w_from;
  // Where the thread's own words of the step lie: the position in the tap, the tap; and what a step adds to them.
  int32_t inside;
  int32_t tap[3];
  int32_t step_inside;
  int32_t step_tap[3];

  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % kOfLine * CHUNK; }
  static __device__ __forceinline__ int line() { return static_cast<int>(threadIdx.x) / kOfLine; }

  // Number `count` of words as words, and taps, of the walk through a window.
  __device__ __forceinline__ void divide(const Windows& v, int32_t count, int32_t& rest, int32_t (&taps)[3]) const {
    const int32_t all = count / tap_words;
    rest = count - all * tap_words;
    const int32_t slow = all / v.kernel[2];
    taps[2] = all - slow * v.kernel[2];
    taps[0] = slow / v.kernel[1];
    taps[1] = slow - taps[0] * v.kernel[1];
  }

  __device__ __forceinline__ void begin_unit(const BitTask& task, const BmmaBlock& block, int32_t unit_index) {
    index = unit_index;
    done = words = 0;
    if (!ONE_UNIT && index == units_of(task)) return;
    const BitUnit unit = bit_unit_at(task, index);
    tap_words = unit.words;
    words = task.windows.taps * unit.words;
    x_from = int64_t{block.group} * task.tap_words + unit.first_word;
    w_from = unit.component * task.weight.rows * task.row_words + unit.first_word;
    if constexpr (WINDOWS) {
      divide(task.windows, column(), inside, tap);
      divide(task.windows, S::kStepWords, step_inside, step_tap);
    }
  }

  __device__ __forceinline__ void begin_step(const BitTask& task, const BmmaBlock& block, const Tables<S>& tables,
                                             uint32_t* stage) {
    if (done >= words) return;
    const Windows& v = task.windows;
    const int32_t word = done + column();
    const bool exists = word < words;
    const auto to = [&](int own) {
      return stage + quarter_of_line<S>(column() / kQuarterWords, own) + column() % kQuarterWords;
    };
    int32_t beyond[3] = {0, 0, 0};
    const uint32_t* x = task.x + x_from;
    if constexpr (WINDOWS) {
#pragma unroll
      for (int d = 0; d < 3; ++d) beyond[d] = tap[d] * v.dilation[d];
      const int64_t pixel = (int64_t{beyond[0]} * v.size[1] + beyond[1]) * v.size[2] + beyond[2];
      x += pixel * task.pixel_words + inside;
    } else {
      x += word;
    }
#pragma unroll
    for (int i = 0; i < S::kPositions / kLinesAtOnce; ++i) {
      const int own = line() + i * kLinesAtOnce;
      const int64_t first = tables.from[own];
      const bool valid = exists && (WINDOWS ? holds(v, tables.window[own], beyond) : is_there(first));
      copy_async_of<4 * CHUNK>(to(own), reinterpret_cast<const char*>(x) + first, valid);  // else never looked at
    }
    const uint32_t* w = task.w + w_from + word;
#pragma unroll
    for (int i = 0; i < S::kRows / kLinesAtOnce; ++i) {
      const int own = line() + i * kLinesAtOnce;
      const int64_t first = tables.row_from[own];
      copy_async_of<4 * CHUNK>(to(own) + S::kPositions * S::kStepWords, reinterpret_cast<const char*>(w) + first,
                               exists && is_there(first));
    }
    done += S::kStepWords;
    if constexpr (WINDOWS) advance(v);
    if (!ONE_UNIT && done >= words) begin_unit(task, block, index + 1);
  }

  __device__ __forceinline__ void advance(const Windows& v) {
    inside += step_inside;
    int32_t carry = inside >= tap_words;
    if (carry) inside -= tap_words;
#pragma unroll
    for (int d = 2; d >= 0; --d) {
      tap[d] += step_tap[d] + carry;
      carry = tap[d] >= v.kernel[d];
      if (carry && d > 0) tap[d] -= v.kernel[d];
    }
  }
};

// sums += a slice of the step: sums[m][n][e] of position 16m + 8 (e / 2) + lane / 4 and row 8n + lane % 4 * 2 + e % 2,
// counted in lines.
template <class S>
__device__ __forceinline__ void multiply_slice(const uint32_t* stage, int slice, const BmmaLane& lane,
                                               int32_t (&sums)[S::kTilesM][S::kTilesN][4]) {
  // Matrices of x: lines 0 .. 7 and 8 .. 15 of 16, then the same of the slice's other quarter; of w: both quarters of
  // lines 0 .. 7, then of 8 .. 15.
  const int of_eight = threadIdx.x % 8;
  const int matrix = threadIdx.x % kWarp / 8;
  const uint32_t* x = stage + (lane.first_line + matrix % 2 * 8) * S::kStepWords +
                      quarter_of_line<S>(2 * slice + matrix / 2, of_eight);
  const uint32_t* w = stage + (S::kPositions + lane.first_row_line + matrix / 2 * 8) * S::kStepWords +
                      quarter_of_line<S>(2 * slice + matrix % 2, of_eight);
  uint32_t b[S::kTilesN][2];
#pragma unroll
  for (int n = 0; n < S::kTilesN; n += 2) {
    uint32_t two[4];
    load_matrices(two, w + n * 8 * S::kStepWords);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[n + i / 2][i % 2] = two[i];
  }
#pragma unroll
  for (int m = 0; m < S::kTilesM; ++m) {
    uint32_t a[4];
    load_matrices(a, x + m * 16 * S::kStepWords);
#pragma unroll
    for (int n = 0; n < S::kTilesN; ++n) mma_16x8x256(sums[m][n], a, b[n]);
  }
}

// sums += the step, of which the first `words` words are not all zero.
template <class S>
__device__ __forceinline__ void multiply_step(const uint32_t* stage, int32_t words, const BmmaLane& lane,
                                              int32_t (&sums)[S::kTilesM][S::kTilesN][4]) {
  if constexpr (S::kWarpsK > 1) {
    if (lane.k * kSliceWords < words) multiply_slice<S>(stage, lane.k, lane, sums);
  } else if (words > (S::kSlices - 1) * kSliceWords) {
#pragma unroll
    for (int slice = 0; slice < S::kSlices; ++slice) multiply_slice<S>(stage, slice, lane, sums);
  } else {
#pragma unroll 1
    for (int slice = 0; slice * kSliceWords < words; ++slice) multiply_slice<S>(stage, slice, lane, sums);
  }
}

// Where the block's warps have slices of their own: the sums of all in the first of them.
template <class S>
__device__ __forceinline__ void add_slices(Tables<S>& tables, const BmmaLane& lane,
                                           int32_t (&sums)[S::kTilesM][S::kTilesN][4]) {
  const auto each = [&](auto what) {
#pragma unroll
    for (int i = 0; i < 4 * S::kTilesM * S::kTilesN; ++i) {
      what(sums[i / 4 / S::kTilesN][i / 4 % S::kTilesN][i % 4], i * kWarp + static_cast<int>(threadIdx.x) % kWarp);
    }
  };
  if (lane.k > 0) each([&](int32_t sum, int at) { tables.partial[lane.k - 1][at] = sum; });
  __syncthreads();
  for (int k = 1; lane.k == 0 && k < S::kWarpsK; ++k) {
    each([&](int32_t& sum, int at) { sum += tables.partial[k - 1][at]; });
  }
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BMMA_TILE_CUH
