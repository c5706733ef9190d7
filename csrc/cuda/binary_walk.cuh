// How few tokens meet binary weights as they lie: rows of bits that begin on any byte, streamed once.
//
// A piece is 16 bytes of a row, 128 columns of one segment. A lane has the pieces of four neighbouring rows in hand,
// so that what it reads of the activations serves four times; `lanes` neighbours lie side by side along the rows, and
// the rest of the warp takes further rows. A block's share of the rows is cut into as many even slices as it has
// warps, wherever the cuts fall; wherever a slice leaves a row or a segment, it adds what it has to that place's
// integers in shared memory: exact, so in whatever order.
#ifndef BITIMPL_CUDA_BINARY_WALK_CUH
#define BITIMPL_CUDA_BINARY_WALK_CUH

#include "layout.cuh"

namespace bitimpl {
namespace cuda {
namespace binary {

constexpr int kRows = 4;  // of a lane
constexpr int kPieceBytes = 16;
constexpr int kPieceColumns = 8 * kPieceBytes;
constexpr int kFewestLanes = 4;
constexpr int kMostColumns = 8;  // tokens times planes of one launch

// One launch. A unit is the rows that a warp has in hand; a round is what a block does between two barriers.
struct Plan {
  int64_t token;  // the first
  int32_t tokens;
  int32_t columns;         // tokens times planes
  int32_t pieces;          // of a row
  int32_t segment_pieces;  // of a segment that is not the last
  int32_t lanes;           // side by side along a row: a power of two
  int32_t loads;           // of a row and component, each of `lanes` pieces
  int32_t together;        // neighbouring lanes that never have pieces of two segments: a power of two
  int32_t row_sums;        // integers of a row and column: components times segments, made odd for the banks
  int32_t unit_rows;
  int32_t granule;         // units that stay together: one, or as many as eight rows take
  int32_t round;           // units of a round, at most
  int64_t units;
  bool quantises;  // the block makes integers of its tokens itself
};

__host__ __device__ __forceinline__ int64_t bytes_of_row(const Weight& w) { return ceil_div<int64_t>(w.cols, 8); }

// Integers of a round: of a column, row by row.
__device__ __forceinline__ int32_t total_at(const Plan& plan, int32_t column, int32_t row) {
  return (column * plan.round * plan.unit_rows + row) * plan.row_sums;
}

// Whether every piece is of 16 aligned bytes of one segment.
inline bool has_whole_pieces(const Weight& w) {
  return reinterpret_cast<uintptr_t>(w.codes) % kPieceBytes == 0 && w.cols % kPieceColumns == 0 &&
         (w.segments == 1 || w.segment % kPieceColumns == 0);
}

// 16 bytes of which `valid` (1 to 16) are wanted, of the bytes [begin, end) of all rows; the others are 0.
__device__ __forceinline__ uint4 load_piece(const uint8_t* from, int32_t valid, const uint8_t* begin,
                                            const uint8_t* end) {
  const uint32_t shift = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(from) % 4);
  const uint8_t* base = from - shift;
  uint32_t words[4];
  if (base >= begin && base + 20 <= end) {
    const uint32_t* aligned = reinterpret_cast<const uint32_t*>(base);
    uint32_t word = aligned[0];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t next = aligned[i + 1];
      words[i] = permute_bytes(word, next, 0x3210u + 0x1111u * shift);
      word = next;
    }
  } else {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      words[word] = 0;
#pragma unroll 1
      for (int i = least(valid - 4 * word, 4) - 1; i >= 0; --i) words[word] = words[word] << 8 | from[4 * word + i];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int32_t bytes = valid - 4 * i;
    if (bytes < 4) words[i] = bytes <= 0 ? 0 : words[i] & ((1u << 8 * bytes) - 1);
  }
  return {words[0], words[1], words[2], words[3]};
}

// A place in the stream of a block: of a unit and component, the first piece of a load.
struct Spot {
  int32_t unit;  // of the round
  int32_t component;
  int32_t load;

  __device__ __forceinline__ void start(const Weight& w, const Plan& plan, int32_t at) {
    const int32_t range = at / plan.loads;
    load = at - range * plan.loads;
    unit = range / w.components;
    component = range - unit * w.components;
  }
  // On to the next component or unit.
  __device__ __forceinline__ void turn(const Weight& w) {
    load = 0;
    if (++component == w.components) {
      component = 0;
      ++unit;
    }
  }
};

struct Load {
  uint4 row[kRows];
};

// What a lane loads, load after load, and after the last of its slice zeros. WHOLE: has_whole_pieces().
template <bool WHOLE>
class Reader {
 public:
  __device__ __forceinline__ Reader(const Weight& w, const Plan& plan, int64_t first_unit, int32_t at, int32_t end)
      : left_(end - at), lane_(threadIdx.x % kWarp % plan.lanes), row_bytes_(static_cast<int32_t>(bytes_of_row(w))) {
    first_row_ = first_unit * plan.unit_rows + threadIdx.x % kWarp / plan.lanes * kRows;
    spot_.start(w, plan, at);
    aim(w, plan);
  }

  __device__ __forceinline__ Load next(const Weight& w, const Plan& plan) {
    Load load;
    const int32_t piece = spot_.load * plan.lanes + lane_;
    const int32_t rows = left_ > 0 && piece < plan.pieces ? rows_ : 0;
    const uint8_t* from = from_;
    int32_t valid = kPieceBytes;
    if (WHOLE) {
      from += int64_t{piece} * kPieceBytes;
    } else {
      const int32_t segment = piece / plan.segment_pieces;
      const int64_t inside = int64_t{piece - segment * plan.segment_pieces} * kPieceBytes;
      const int64_t begin = segment * (w.segment / 8) + inside;
      // A segment ends on a byte, but for the last.
      const int64_t segment_end = segment + 1 == w.segments ? row_bytes_ : (segment + 1) * (w.segment / 8);
      valid = static_cast<int32_t>(least<int64_t>(kPieceBytes, segment_end - begin));
      from += begin;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      load.row[r] = {0, 0, 0, 0};
      if (r >= rows) continue;
      if (WHOLE) {
        load.row[r] = load_once(from + r * row_bytes_);
      } else {
        const uint8_t* end = w.codes + w.components * w.rows * int64_t{row_bytes_};
        load.row[r] = load_piece(from + r * row_bytes_, valid, w.codes, end);
      }
    }
    --left_;
    if (++spot_.load == plan.loads) {
      spot_.turn(w);
      aim(w, plan);
    }
    return load;
  }

 private:
  __device__ __forceinline__ void aim(const Weight& w, const Plan& plan) {
    const int64_t row = first_row_ + int64_t{spot_.unit} * plan.unit_rows;
    rows_ = static_cast<int32_t>(most<int64_t>(0, least<int64_t>(kRows, w.rows - row)));
    from_ = w.codes + (spot_.component * w.rows + row) * int64_t{row_bytes_};
  }

  int32_t left_;
  int32_t lane_;
  int32_t rows_;  // of this lane's four that exist
  int32_t row_bytes_;
  int64_t first_row_;  // of this lane, in the round's first unit
  Spot spot_;
  const uint8_t* from_;
};

// Adds a lane's sums of four rows to the integers of its piece's segment. Lanes of one segment add theirs up first;
// from four of them on each goes on with one of the rows.
template <int COLUMNS, class Products>
__device__ __forceinline__ void add_sums(Products& products, const Weight& w, const Plan& plan, const Spot& spot,
                                         int32_t* totals) {
  const int lane = threadIdx.x % kWarp;
  const int32_t in_group = lane % plan.together;
  const int32_t piece = spot.load * plan.lanes + lane % plan.lanes - in_group;  // the group's first
  const int32_t segment = plan.segment_pieces == plan.pieces ? 0 : piece / plan.segment_pieces;
  const bool exists = piece < plan.pieces;
  const int32_t row = spot.unit * plan.unit_rows + lane / plan.lanes * kRows;
  int32_t* to = totals + total_at(plan, 0, row) + spot.component * w.segments + segment;
  const int32_t stride = opaque(plan.round) * plan.unit_rows * plan.row_sums;  // of a column
  const bool upper = lane & 2;
  const bool odd = lane & 1;
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    if (column == plan.columns) break;
    int32_t s[kRows];
    products.take(column, s);
    if (plan.together >= kRows) {
      const int32_t even_row = (upper ? s[2] : s[0]) + shuffle_xor(upper ? s[0] : s[2], 2);
      const int32_t odd_row = (upper ? s[3] : s[1]) + shuffle_xor(upper ? s[1] : s[3], 2);
      int32_t own = (odd ? odd_row : even_row) + shuffle_xor(odd ? even_row : odd_row, 1);
      for (int mask = kRows; mask < plan.together; mask *= 2) own += shuffle_xor(own, mask);
      if (exists && in_group < kRows) add_atomically(to + column * stride + in_group * plan.row_sums, own);
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (plan.together == 2) s[r] += shuffle_xor(s[r], 1);
        if (exists && in_group == 0) add_atomically(to + column * stride + r * plan.row_sums, s[r]);
      }
    }
  }
}

// Loads [begin, end) of the round's stream, into `totals`. `ring` holds the reader's first loads. `products` takes
// loads by add(load, piece) and gives up a column's sums by take(column, sums), after which those begin again.
template <int COLUMNS, bool WHOLE, int AHEAD, class Products>
__device__ __forceinline__ void walk(const Weight& w, const Plan& plan, int32_t begin, int32_t end,
                                     Reader<WHOLE>& reader, Load (&ring)[AHEAD], Products& products,
                                     int32_t* totals) {
  const int32_t lane = threadIdx.x % kWarp % plan.lanes;
  const bool segmented = plan.segment_pieces < plan.pieces;
  Spot spot;
  spot.start(w, plan, begin);
  for (int32_t base = begin; base < end; base += AHEAD) {
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      if (base + u >= end) break;
      const Load load = ring[u];
      ring[u] = reader.next(w, plan);
      const int32_t piece = spot.load * plan.lanes + lane;
      if (piece < plan.pieces) products.add(load, piece);
      if (segmented || spot.load + 1 == plan.loads || base + u + 1 == end) {
        add_sums<COLUMNS>(products, w, plan, spot, totals);
      }
      if (++spot.load == plan.loads) spot.turn(w);
    }
  }
}

// A block's share of the units.
__device__ __forceinline__ int64_t share_begin(const Plan& plan, int64_t block) {
  const int64_t granules = ceil_div<int64_t>(plan.units, plan.granule);
  return least(granules * block / gridDim.x * plan.granule, plan.units);
}

// A block's work, round after round. take() brings the tokens into shared memory, once, as `products` want them;
// finish(row, rows) makes y of a round's rows from `totals`.
template <class Products, int COLUMNS, bool WHOLE, int AHEAD, int THREADS, class Tokens, class Take, class Finish>
__device__ __forceinline__ void work(const Weight& w, const Plan& plan, const void* bias, int32_t bias_dtype,
                                     const Tokens* tokens, int32_t* totals, Take take, Finish finish) {
  constexpr int kWarps = THREADS / kWarp;
  const int32_t unit_loads = w.components * plan.loads;
  const int32_t warp = threadIdx.x / kWarp;
  const int64_t share = share_begin(plan, blockIdx.x);
  const int64_t share_end = share_begin(plan, int64_t{blockIdx.x} + 1);
  for (int64_t unit = share; unit < share_end; unit += plan.round) {
    const int32_t units = static_cast<int32_t>(least<int64_t>(plan.round, share_end - unit));
    const int32_t begin = static_cast<int32_t>(int64_t{units} * unit_loads * warp / kWarps);
    const int32_t end = static_cast<int32_t>(int64_t{units} * unit_loads * (warp + 1) / kWarps);
    // The weight is on its way before the tokens are there.
    Reader<WHOLE> reader(w, plan, unit, begin, end);
    Load ring[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) ring[u] = reader.next(w, plan);
    prefetch_scales<THREADS>(w, bias, bias_dtype, unit * plan.unit_rows, units * plan.unit_rows);
    if (unit != share) __syncthreads();  // the round before has been read
    const int32_t integers = total_at(plan, plan.columns, 0);
    for (int32_t i = threadIdx.x; i < integers; i += THREADS) totals[i] = 0;
    if (unit == share) take();
    __syncthreads();
    Products products(tokens, plan);
    walk<COLUMNS>(w, plan, begin, end, reader, ring, products, totals);
    __syncthreads();
    finish(unit * plan.unit_rows, round_up(units, plan.granule) * plan.unit_rows);
  }
}

// t of impl.h for a row, of which dot(component, segment) says the dot products.
template <class Dot>
__device__ __forceinline__ float scaled_sum(const Weight& w, int64_t row, Dot dot) {
  float t = 0.0f;
  for (int32_t component = 0; component < w.components; ++component) {
    for (int32_t segment = 0; segment < w.segments; ++segment) {
      t = t + scale_at(w, component, row, segment) * dot(component, segment);
    }
  }
  return t;
}

// ---- host --------------------------------------------------------------------------------------------------

// What follows from the sizes of the weight; the rest is of a launch.
inline Plan plan_of(const Weight& w) {
  Plan plan = {};
  plan.segment_pieces = static_cast<int32_t>(ceil_div<int64_t>(w.segment, kPieceColumns));
  const int64_t last = w.cols - (w.segments - 1) * w.segment;
  plan.pieces = (w.segments - 1) * plan.segment_pieces + static_cast<int32_t>(ceil_div<int64_t>(last, kPieceColumns));
  plan.lanes = kFewestLanes;
  while (plan.lanes < kWarp && plan.lanes < plan.pieces) plan.lanes *= 2;
  plan.loads = ceil_div(plan.pieces, plan.lanes);
  plan.together = plan.lanes;
  if (w.segments == 1) plan.segment_pieces = plan.pieces;
  while (w.segments > 1 && plan.segment_pieces % plan.together != 0) plan.together /= 2;
  plan.row_sums = w.components * w.segments | 1;
  plan.unit_rows = kRows * kWarp / plan.lanes;
  plan.granule = 1;
  plan.units = ceil_div<int64_t>(w.rows, plan.unit_rows);
  return plan;
}

// Bytes of the integers of so many units.
inline int64_t bytes_of_totals(const Plan& plan, int64_t units) {
  return int64_t{4} * plan.columns * units * plan.unit_rows * plan.row_sums;
}

// The rest of a plan whose columns and granule are known, with `room` bytes for integers; the number of blocks.
// 0: there is no room.
inline int64_t divide_units(const Weight& w, const Device& device, int64_t room, Plan* plan) {
  const int64_t granules = ceil_div<int64_t>(plan->units, plan->granule);
  const int64_t blocks = least<int64_t>(granules, device.multiprocessors);
  const int64_t units_that_fit = room / bytes_of_totals(*plan, 1);
  const int64_t units_counted = (int64_t{1} << 30) / (int64_t{w.components} * plan->loads);  // loads in 32 bits
  const int64_t round = least(least(units_that_fit, units_counted), ceil_div(granules, blocks) * plan->granule);
  plan->round = static_cast<int32_t>(round / plan->granule * plan->granule);
  return plan->round > 0 ? blocks : 0;
}

}  // namespace binary
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BINARY_WALK_CUH
