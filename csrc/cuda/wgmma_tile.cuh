// What a warpgroup of gemm_sm90a.cu does with its tiles: codes decoded into operands, the products of each digit,
// their sums scaled, added up and stored.
#ifndef BITIMPL_CUDA_WGMMA_TILE_CUH
#define BITIMPL_CUDA_WGMMA_TILE_CUH

#include "wgmma_loads.cuh"

namespace bitimpl {
namespace cuda {
namespace wgmma {

// Operands of one product of each digit: `half` of a step.
template <int FORMAT>
__device__ __forceinline__ void decode(const Codes& codes, int half,
                                       uint32_t (&operands)[Digits<FORMAT>::kRows][4]) {
#pragma unroll
  for (int word = 0; word < 2; ++word) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const uint32_t words[4] = {codes.of[upper].x, codes.of[upper].y, codes.of[upper].z, codes.of[upper].w};
      uint32_t of_rows[Digits<FORMAT>::kRows];
      Digits<FORMAT>::operands(words[fragment_word(half, word)], of_rows);
#pragma unroll
      for (int j = 0; j < Digits<FORMAT>::kRows; ++j) operands[j][2 * word + upper] = of_rows[j];
      // The word itself: in registers of its own, for those of the codes are loaded anew during the product.
      if (FORMAT == BITIMPL_BASE3) operands[0][2 * word + upper] = copy_of(of_rows[0]);
    }
  }
#pragma unroll
  for (int j = 0; j < Digits<FORMAT>::kRows; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) pin(operands[j][i]);
  }
}

template <int FORMAT, int COLUMNS>
struct Sums {
  static constexpr int kRows = Digits<FORMAT>::kRows;
  int32_t of[kRows][COLUMNS / 2];

  // Both planes' sums of digits times activations, from those of operands.
  template <int PLANES>
  __device__ __forceinline__ void digits(int eighth, int upper, int odd, int32_t (&codes)[kRows][2]) const {
#pragma unroll
    for (int plane = 0; plane < PLANES; ++plane) {
      int32_t rows[kRows];
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        rows[j] = of[j][fragment_register(eighth + plane * (COLUMNS / 8 / PLANES), upper, odd)];
      }
      Digits<FORMAT>::rows(rows);
#pragma unroll
      for (int j = 0; j < kRows; ++j) codes[j][plane] = rows[j];
    }
  }
};

template <int FORMAT, int COLUMNS>
__device__ __forceinline__ void pin_all(Sums<FORMAT, COLUMNS>& sums) {
#pragma unroll
  for (int j = 0; j < Digits<FORMAT>::kRows; ++j) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) pin(sums.of[j][i]);
  }
}

template <int FORMAT, int COLUMNS, int PLANES>
class Consumer {
  static constexpr int kRows = Digits<FORMAT>::kRows;
  static constexpr bool kSegmented = COLUMNS == kSegmentedColumns;
  static constexpr int kTokens = tile_tokens(COLUMNS, PLANES);
  static constexpr int kEighths = kTokens / 8;
  static constexpr int kTotals = kSegmented ? kTokens / 2 : 1;  // of a row in a thread
  // Of operands. With two a half is decoded during the products of the half before; those of base3 leave no
  // registers for it, and the other warpgroup's products fill the time.
  static constexpr int kSets = FORMAT == BITIMPL_BASE3 ? 1 : 2;
  // Whether the first codes of the next tile are loaded before the end of a tile: where there are registers.
  static constexpr bool kAcross = FORMAT == BITIMPL_TWO_BIT && PLANES == 1;

 public:
  __device__ __forceinline__ Consumer(const Job& job, const Stages<COLUMNS>& stages)
      : job_(job), stages_(stages), address_(shared_address(stages.data)) {}

  __device__ __forceinline__ void run() {
    const Weight& w = job_.task.weight;
    const int warp = threadIdx.x / kWarp;
    const int64_t first_group =
        warp / kGroupWarps * kProductGroups + fragment_group(warp, threadIdx.x % kWarp, 0);
    CodeWalk<!kSegmented> walk(job_, first_group);
    Codes even;
    Codes odd;
    if (kAcross) {
      even = walk.fetch();
      odd = walk.fetch();
    }
    Sums<FORMAT, COLUMNS> sums;
    uint32_t operands[kSets][kRows][4];
    for (int64_t index = blockIdx.x; index < job_.weight_tiles * job_.token_tiles; index += gridDim.x) {
      const Tile tile = tile_at(index, job_.weight_tiles, job_.token_tiles);
      const int64_t group = tile.weight * kTileGroups + first_group;
      const int32_t token = static_cast<int32_t>(tile.tokens * kTokens);
      float t[kRows][kTotals] = {};
      int32_t ahead = w.steps * (kSegmented ? w.components : 1);  // steps whose codes are yet to be loaded
      if (!kAcross) {
        even = walk.fetch();
        if (ahead > 1) odd = walk.fetch();
        ahead -= 2;
      }
      for (int32_t component = 0; component < (kSegmented ? w.components : 1); ++component) {
        for (int32_t segment = 0; segment < (kSegmented ? w.segments : 1); ++segment) {
          const int32_t first = segment * w.segment_steps;
          const int32_t steps = least(first + w.segment_steps, w.steps) - first;
          for (int32_t i = 0; i < steps; i += 2) {
            add_step(even, i > 0, sums, operands);
            if (kAcross || ahead-- > 0) even = walk.fetch();
            if (i + 1 == steps) break;
            add_step(odd, true, sums, operands);
            if (kAcross || ahead-- > 0) odd = walk.fetch();
          }
          wait_for_products<0>();
          pin_all(sums);  // nothing that reads them may move in front of the wait
          release(next_ - 1);
          if (steps % 2 != 0) {
            const Codes later = even;
            even = odd;
            odd = later;
          }
          if constexpr (kSegmented) add_segment(sums, component, segment, group, token, t);
        }
      }
      if constexpr (kSegmented) {
        store_totals(t, group, token);
      } else {
        store_sums(sums, group, token);
      }
    }
  }

 private:
  // Every warp for itself: its products are done, whatever the others' are.
  __device__ __forceinline__ void release(uint32_t copy) {
    if (threadIdx.x % kWarp == 0) arrive(stages_.empty + stage_of(copy));
  }

  // Adds one step's products, or begins with them. Of the groups of a half each kSets - 1 stay in flight.
  __device__ __forceinline__ void add_step(const Codes& codes, bool add, Sums<FORMAT, COLUMNS>& sums,
                                           uint32_t (&operands)[kSets][kRows][4]) {
    const uint32_t stage = stage_of(next_);
    wait_for_phase(stages_.full + stage, parity_of(next_));
    const uint32_t address = address_ + stage * Stages<COLUMNS>::kBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t (&of_half)[kRows][4] = operands[half % kSets];
      if (kSets == 1) wait_for_products<0>();
      decode<FORMAT>(codes, half, of_half);
      fence_products();
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        multiply<COLUMNS>(sums.of[j], of_half[j], descriptor(address, half), add || half > 0);
      }
      commit_products();
      if (kSets == 2) wait_for_products<1>();
      if (half == 0 && add) release(next_ - 1);
    }
    ++next_;
  }

  // Values of a row group's rows, a stride apart; where there are fewer rows, of the last once more.
  __device__ __forceinline__ void load_rows(const void* values, int32_t dtype, int64_t first, int64_t stride,
                                            int64_t group, float (&out)[kRows]) const {
    const Weight& w = job_.task.weight;
    const int64_t row = least(group, w.groups - 1) * kRows;
    const int last = static_cast<int>(least<int64_t>(kRows, w.rows - row)) - 1;
    first += row * stride;
    if (dtype == BITIMPL_F32) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        out[j] = static_cast<const float*>(values)[first + least(j, last) * stride];
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const uint16_t half = static_cast<const uint16_t*>(values)[first + least(j, last) * stride];
      out[j] = dtype == BITIMPL_BF16 ? float_of_bf16(half) : float_of_f16(half);
    }
  }

  __device__ __forceinline__ void scales_of(int32_t component, int32_t segment, int64_t group,
                                            float (&scales)[kRows]) const {
    const Weight& w = job_.task.weight;
    load_rows(w.scales, w.scale_dtype, component * w.scale_component_stride + segment * w.scale_group_stride,
              w.scale_row_stride, group, scales);
  }

  __device__ __forceinline__ void biases_of(int64_t group, float (&biases)[kRows]) const {
    const Result& r = job_.task.result;
#pragma unroll
    for (int j = 0; j < kRows; ++j) biases[j] = 0.0f;
    if (r.bias != nullptr) load_rows(r.bias, r.bias_dtype, 0, 1, group, biases);
  }

  // scale * float(dot) of every row of a group, for one token.
  __device__ __forceinline__ void scale_dots(const Sums<FORMAT, COLUMNS>& sums, const float (&scales)[kRows],
                                             int i, int upper, int32_t token, int32_t segment,
                                             float (&scaled)[kRows]) const {
    int32_t codes[kRows][2];
    sums.template digits<PLANES>(i / 2, upper, i % 2, codes);
    const Tokens& x = job_.task.x;
    const int64_t at = int64_t{token} * job_.task.weight.segments + segment;
    const int32_t high = x.sums[0][at];
    const int32_t low = PLANES == 2 ? x.sums[1][at] : 0;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      // dot_of() of layout.cuh, where the number of planes is a constant.
      const int32_t dot = codes[j][0] - high;
      scaled[j] = scales[j] * (PLANES == 1 ? static_cast<float>(dot)
                                           : static_cast<float>(int64_t{256} * dot + (codes[j][1] - low)));
    }
  }

  // A lane's row groups one after the other, for there are registers for one's scales and biases.
  __device__ __forceinline__ void add_segment(const Sums<FORMAT, COLUMNS>& sums, int32_t component,
                                              int32_t segment, int64_t group, int32_t first_token,
                                              float (&t)[kRows][kTotals]) const {
    const int32_t tokens = static_cast<int32_t>(job_.task.x.rows);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      float scales[kRows];
      scales_of(component, segment, group + 8 * upper, scales);
      const int lane = threadIdx.x % kWarp;
#pragma unroll
      for (int i = 0; i < 2 * kEighths; ++i) {
        const int32_t token = first_token + fragment_column(lane, i / 2, i % 2);
        if (token >= tokens) continue;
        float scaled[kRows];
        scale_dots(sums, scales, i, upper, token, segment, scaled);
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          float& total = t[j][fragment_register(i / 2, upper, i % 2)];
          total = total + scaled[j];
        }
      }
    }
  }

  __device__ __forceinline__ void store_totals(const float (&t)[kRows][kTotals], int64_t group,
                                               int32_t first_token) const {
    const int32_t tokens = static_cast<int32_t>(job_.task.x.rows);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      float biases[kRows];
      biases_of(group + 8 * upper, biases);
      const Target target = target_of(group + 8 * upper);
      const int lane = threadIdx.x % kWarp;
#pragma unroll
      for (int i = 0; i < 2 * kEighths; ++i) {
        const int32_t token = first_token + fragment_column(lane, i / 2, i % 2);
        if (token >= tokens) continue;
        float totals[kRows];
#pragma unroll
        for (int j = 0; j < kRows; ++j) totals[j] = t[j][fragment_register(i / 2, upper, i % 2)];
        store_group(target, token, totals, biases);
      }
    }
  }

  __device__ __forceinline__ void store_sums(const Sums<FORMAT, COLUMNS>& sums, int64_t group,
                                             int32_t first_token) const {
    const int32_t tokens = static_cast<int32_t>(job_.task.x.rows);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      float scales[kRows];
      float biases[kRows];
      scales_of(0, 0, group + 8 * upper, scales);
      biases_of(group + 8 * upper, biases);
      const Target target = target_of(group + 8 * upper);
      const int lane = threadIdx.x % kWarp;
#pragma unroll
      for (int i = 0; i < 2 * kEighths; ++i) {
        const int32_t token = first_token + fragment_column(lane, i / 2, i % 2);
        if (token >= tokens) continue;
        float totals[kRows];
        scale_dots(sums, scales, i, upper, token, 0, totals);
#pragma unroll
        for (int j = 0; j < kRows; ++j) totals[j] = 0.0f + totals[j];  // t begins at 0, and 0 + (-0) is 0
        store_group(target, token, totals, biases);
      }
    }
  }

  // Where y of a row group goes: its first row's of token 0, and how many of its rows there are.
  struct Target {
    char* first;
    int rows;
    bool wide;
  };

  __device__ __forceinline__ int bytes_of_y() const { return job_.task.result.dtype == BITIMPL_F32 ? 4 : 2; }

  __device__ __forceinline__ Target target_of(int64_t group) const {
    const int64_t row = group * kRows;
    const int rows = static_cast<int>(most<int64_t>(least<int64_t>(kRows, job_.task.weight.rows - row), 0));
    return {static_cast<char*>(job_.task.result.y) + row * bytes_of_y(), rows,
            kRows == 4 && rows == 4 && stores_four(job_.task.result)};
  }

  // y of a row group for one token, with one store where it can be.
  __device__ __forceinline__ void store_group(const Target& target, int32_t token, const float (&t)[kRows],
                                              const float (&biases)[kRows]) const {
    const Result& r = job_.task.result;
    char* to = target.first + token * (r.row_stride * bytes_of_y());
    const float x_scale = job_.task.x.scale[token];
    uint32_t words[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      float y = t[j] * x_scale;
      if (r.bias != nullptr) y = y + biases[j];
      words[j] = r.dtype == BITIMPL_F32    ? bits_of(y)
                 : r.dtype == BITIMPL_BF16 ? bf16_of_float(y)
                                           : f16_of_float(y);
    }
    if (kRows == 4 && target.wide) {
      if (r.dtype == BITIMPL_F32) {
        store_words(to, uint4{words[0], words[1], words[2], words[3]});
      } else {
        store_words(to, uint2{words[0] | words[1] << 16, words[2] | words[3] << 16});
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (j >= target.rows) break;
      if (r.dtype == BITIMPL_F32) {
        reinterpret_cast<float*>(to)[j] = float_of_bits(words[j]);
      } else {
        reinterpret_cast<uint16_t*>(to)[j] = static_cast<uint16_t>(words[j]);
      }
    }
  }

  const Job& job_;
  const Stages<COLUMNS>& stages_;
  const uint32_t address_;
  uint32_t next_ = 0;  // step, counted over all tiles
};

}  // namespace wgmma
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_WGMMA_TILE_CUH
