// How a warp of gemv.cu walks along its slice of the codes: loads ahead of the products, and sums added to shared
// memory wherever the slice leaves a row group, a component or a scale group.
#ifndef BITIMPL_CUDA_GEMV_WALK_CUH
#define BITIMPL_CUDA_GEMV_WALK_CUH

#include "layout.cuh"

namespace bitimpl {
namespace cuda {
namespace gemv {

constexpr int kLaneColumns = 16;                   // of one load
constexpr int kLanesAStep = kStep / kLaneColumns;  // 4
constexpr int kPieces = 2;                         // 16 bytes each, that a lane loads at a time

// One launch. A unit is `span` neighbouring row groups, 1, 2 or 4 of a row block; a round is what a block does
// between two barriers.
struct Plan {
  int64_t token;    // the first
  int32_t tokens;
  int32_t columns;  // tokens times planes
  int32_t span;
  int32_t round;       // units of a round, at most
  int32_t unit_sums;   // integers of a unit
  int64_t units;
  bool quantises;
};

// Steps of a piece of a warp's load.
__host__ __device__ __forceinline__ int32_t steps_of_piece(int32_t span) { return kWarp / kLanesAStep / span; }

// A place in the stream of a block: of a unit, component and step, the first of a warp's load.
struct Place {
  int32_t unit;  // of the round
  int32_t component;
  int32_t step;

  // The place of the load `at`.
  __device__ __forceinline__ void start(const Weight& w, int32_t at, int32_t hop) {
    const int32_t loads = ceil_div(w.steps, hop);  // of a unit and component
    const int32_t range = at / loads;
    step = (at - range * loads) * hop;
    unit = range / w.components;
    component = range - unit * w.components;
  }

  // On to the next component or unit.
  __device__ __forceinline__ void turn(const Weight& w) {
    step = 0;
    if (++component == w.components) {
      component = 0;
      ++unit;
    }
  }
};

struct Load {
  uint4 piece[kPieces];
};

// What a lane loads, load after load, and after the last of its slice zeros. WHOLE: every piece is of 16 aligned
// bytes.
template <bool WHOLE>
class Reader {
 public:
  __device__ __forceinline__ Reader(const Weight& w, const Plan& plan, int64_t first_unit, int32_t at, int32_t end)
      : hop_(steps_of_piece(plan.span)), left_(end - at) {
    const int lane = threadIdx.x % kWarp;
    column_ = lane % kLanesAStep * kLaneColumns;
    lane_step_ = lane / kLanesAStep / plan.span;
    place_.start(w, at, kPieces * hop_);
    first_group_ = first_unit * plan.span + lane / kLanesAStep % plan.span;
    aim(w, plan);
  }

  __device__ __forceinline__ Load next(const Weight& w, const Plan& plan) {
    Load load;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      load.piece[i] = {0, 0, 0, 0};
      if (place_.step + lane_step_ < steps_) {
        if (WHOLE) {
          load.piece[i] = load_once(from_);
        } else {
          const Step step = step_at(w, place_.step + lane_step_);
          const int64_t group = first_group_ + int64_t{place_.unit} * plan.span;
          load.piece[i] = load_codes(codes_at(w, group, place_.component, step) + column_, step.columns - column_);
        }
      }
      place_.step += hop_;
      from_ += bytes_;
    }
    --left_;
    if (place_.step >= w.steps) {
      place_.turn(w);
      aim(w, plan);
    }
    if (left_ <= 0) steps_ = 0;
    return load;
  }

 private:
  __device__ __forceinline__ void aim(const Weight& w, const Plan& plan) {
    const int64_t group = first_group_ + int64_t{place_.unit} * plan.span;
    steps_ = group < w.groups && left_ > 0 ? w.steps : 0;
    if (!WHOLE) return;
    const int64_t block = group / kBlockGroups * kBlockGroups;
    const int64_t groups = least<int64_t>(kBlockGroups, w.groups - block);
    bytes_ = static_cast<int32_t>(groups) * kStep * hop_;
    from_ = w.codes + (block * w.components + place_.component * groups) * w.cols + (group - block) * kStep +
            (place_.step + lane_step_) * groups * kStep + column_;
  }

  int32_t hop_;  // steps of a piece
  int32_t left_;
  int32_t column_;
  int32_t lane_step_;
  int32_t steps_;  // 0 where there is nothing for this lane
  int32_t bytes_ = 0;
  int64_t first_group_;
  Place place_;
  const uint8_t* from_ = nullptr;
};

// Adds a lane's sums to `to` (of its unit, component, segment and group; columns `stride` apart) and begins
// again. The four lanes of a step and group share one: each hands on the rows that are not its own.
template <int FORMAT, int COLUMNS>
__device__ __forceinline__ void flush(int32_t (&sums)[COLUMNS][Digits<FORMAT>::kRows], const Plan& plan, int32_t* to,
                                      int32_t stride) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const int quarter = threadIdx.x % kLanesAStep;
  const bool upper = quarter >= 2;
  const bool odd = quarter % 2 != 0;
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    if (column == plan.columns) break;
    int32_t(&s)[kRows] = sums[column];
    Digits<FORMAT>::rows(s);
    const int32_t even_row = (upper ? s[2] : s[0]) + shuffle_xor(upper ? s[0] : s[2], 2);
    const int32_t odd_row = (upper ? s[3] : s[1]) + shuffle_xor(upper ? s[1] : s[3], 2);
    const int32_t row = (odd ? odd_row : even_row) + shuffle_xor(odd ? even_row : odd_row, 1);
    add_atomically(to + column * stride + quarter, row);
    if (kRows == 5) {
      int32_t last = s[kRows - 1] + shuffle_xor(s[kRows - 1], 1);
      last += shuffle_xor(last, 2);
      if (quarter == 0) add_atomically(to + column * stride + kRows - 1, last);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) s[j] = 0;
  }
}

template <int FORMAT, int COLUMNS>
__device__ __forceinline__ void add_products(const uint4& codes, const int8_t* q, int32_t row_bytes, int32_t columns,
                                             int32_t (&sums)[COLUMNS][Digits<FORMAT>::kRows]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  uint32_t operands[4][kRows];
#pragma unroll
  for (int word = 0; word < 4; ++word) Digits<FORMAT>::operands(words[word], operands[word]);
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    if (column > 0 && column == columns) break;
    const uint4 four = *reinterpret_cast<const uint4*>(q + column * row_bytes);
    const uint32_t values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int word = 0; word < 4; ++word) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) sums[column][j] = dp4a(operands[word][j], values[word], sums[column][j]);
    }
  }
}

// Loads [begin, end) of the round's stream, into `totals`. `ring` holds the reader's first loads.
template <int FORMAT, int COLUMNS, bool WHOLE, int AHEAD>
__device__ __forceinline__ void walk(const Weight& w, const Plan& plan, const int8_t* q, int32_t begin, int32_t end,
                                     Reader<WHOLE>& reader, Load (&ring)[AHEAD], int32_t* totals) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const int lane = threadIdx.x % kWarp;
  const int32_t hop = steps_of_piece(plan.span);
  const int32_t lane_step = lane / kLanesAStep / plan.span;
  const int32_t unit_rows = plan.span * kRows;
  const int32_t row_bytes = kStep * w.steps;
  const int8_t* mine = q + lane_step * kStep + lane % kLanesAStep * kLaneColumns;
  int32_t* totals_of_group = totals + lane / kLanesAStep % plan.span * kRows;
  const bool segmented = w.segments > 1;
  Place place;
  place.start(w, begin, kPieces * hop);
  int32_t segment = segmented ? place.step / w.segment_steps : 0;  // of the piece's first step
  int32_t inside = place.step - segment * w.segment_steps;
  int32_t sums[COLUMNS][kRows] = {};
  const auto flush_sums = [&] {
    int32_t of_lane = segment;
    if (segmented) {
      for (int32_t at = inside + lane_step; at >= w.segment_steps && of_lane + 1 < w.segments;
           at -= w.segment_steps) {
        ++of_lane;
      }
    }
    const int32_t sum = (place.component * w.segments + of_lane) * plan.columns;
    flush<FORMAT, COLUMNS>(sums, plan, totals_of_group + place.unit * plan.unit_sums + sum * unit_rows, unit_rows);
  };
  for (int32_t base = begin; base < end; base += AHEAD) {
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      if (base + u >= end) break;
      const Load load = ring[u];
      ring[u] = reader.next(w, plan);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        add_products<FORMAT, COLUMNS>(load.piece[i], mine + place.step * kStep, row_bytes, plan.columns, sums);
        place.step += hop;
        if (segmented) {
          if (inside + 2 * hop > w.segment_steps) flush_sums();  // before any lane comes to another segment
          for (inside += hop; inside >= w.segment_steps; inside -= w.segment_steps) ++segment;
        }
      }
      if (place.step >= w.steps) {
        flush_sums();
        place.turn(w);
        segment = inside = 0;
      }
    }
  }
  if (place.step > 0) flush_sums();
}

}  // namespace gemv
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_GEMV_WALK_CUH
