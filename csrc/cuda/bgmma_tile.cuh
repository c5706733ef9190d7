// What a warpgroup of binary_gemm_sm90a.cu does with its tiles: the products of a line after the other, then
// sums to dot products, scales, y, and the stores.
#ifndef BITIMPL_CUDA_BGMMA_TILE_CUH
#define BITIMPL_CUDA_BGMMA_TILE_CUH

#include "bgmma_loads.cuh"
#include "hopper_bits.cuh"

namespace bitimpl {
namespace cuda {
namespace bgmma {

// What y is stored as.
enum class Out { kSigns, kFloat, kHalf };

// A token of a lane, of its two: eight rows of the product apart.
struct Row {
  int64_t sample;
  int64_t place;  // element of y
  int64_t index;  // where its counts are
  float scale;
  bool there;  // else it is the last one again, of which nothing is stored
};

template <int COLUMNS, Out OUT>
class Consumer {
  static constexpr bool kUnits = COLUMNS == kUnitColumns;
  static constexpr int kEighths = COLUMNS / 8;
  static constexpr int kTotals = kUnits ? COLUMNS / 2 : 1;
  static constexpr int kSignWords = COLUMNS / 32;  // of a token
  using Ring = Turn<Stages<COLUMNS>::kCount>;

 public:
  __device__ __forceinline__ Consumer(const Job& job, const Stages<COLUMNS>& stages)
      : job_(job), task_(job.task), stages_(stages), lane_(static_cast<int>(threadIdx.x) % kWarp) {}

  __device__ __forceinline__ void run() {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int own = warp / kGroupWarps * kProductTokens;
    const uint32_t x_address = shared_address(stages_.data) + static_cast<uint32_t>(own * kLineBytes);
    const uint32_t w_address = shared_address(stages_.data) + token_bytes();
    const int32_t units = kUnits ? units_of(task_) : 1;
    int32_t sums[COLUMNS / 2];
    for (int64_t index = blockIdx.x; index < job_.weight_tiles * job_.token_tiles; index += gridDim.x) {
      const wgmma::Tile tile = wgmma::tile_at(index, job_.weight_tiles, job_.token_tiles);
      const int64_t token = tile.tokens * kTileTokens + own + wgmma::fragment_group(warp, lane_, 0);
      const Row rows[2] = {row_at(token), row_at(token + 8)};
      float t[kTotals] = {};
      for (int32_t i = 0; i < units; ++i) {
        const BitUnit unit = bit_unit_at(task_, i);
        const int32_t terms[2] = {term_of(rows[0], unit), term_of(rows[1], unit)};
        multiply(lines_of(unit), x_address, w_address, sums);
        wait_for_phase(stages_.known + constants_.index, constants_.parity);
        if constexpr (kUnits) {
          add_unit(sums, terms, t);
          if (i + 1 < units) release_constants();
        } else {
          finish_tile(rows, tile.weight * COLUMNS, sums, terms);
        }
      }
      if constexpr (kUnits) store(rows, tile.weight * COLUMNS, [&](int at) { return t[at]; });
      release_constants();
    }
  }

 private:
  // ---- products ------------------------------------------------------------------------------------------

  // The sums of a unit. Products of one line stay in flight while the next one's begin.
  __device__ __forceinline__ void multiply(int32_t lines, uint32_t x_address, uint32_t w_address,
                                           int32_t (&sums)[COLUMNS / 2]) {
    uint32_t before = 0;
    for (int32_t line = 0; line < lines; ++line) {
      wait_for_phase(stages_.full + stage_.index, stage_.parity);
      const uint32_t offset = stage_.index * Stages<COLUMNS>::kBytes;
      fence_products();
#pragma unroll
      for (int product = 0; product < kLineProducts; ++product) {
        multiply_bits<COLUMNS>(sums, descriptor(x_address + offset, product),
                               descriptor(w_address + offset, product), product > 0 || line > 0);
      }
      commit_products();
      wait_for_products<1>();
      if (line > 0) release(before);
      before = stage_.index;
      stage_.next();
    }
    wait_for_products<0>();
    // Nothing that reads them may move in front of the wait.
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) pin(sums[i]);
    release(before);
  }

  // Every warp for itself: its products are done, whatever the others' are.
  __device__ __forceinline__ void release(uint32_t stage) {
    if (lane_ == 0) arrive(stages_.empty + stage);
  }

  __device__ __forceinline__ void release_constants() {
    __syncwarp();
    if (lane_ == 0) arrive(stages_.used + constants_.index);
    constants_.next();
  }

  // ---- from sums to y ------------------------------------------------------------------------------------

  __device__ __forceinline__ Row row_at(int64_t token) const {
    const int64_t index = least(token, job_.tokens - 1);
    Row row = {index, index * task_.result.sample_stride, index, 0.0f, token < job_.tokens};
    if (task_.windows.positions > 1) {
      const Place position = position_at(task_.windows, index);
      row.sample = position.sample;
      row.place = place_of(task_.result, position);
    }
    row.scale = task_.x_scale[row.sample];
    return row;
  }

  // The part of dot_of_set() that a token brings.
  __device__ __forceinline__ int32_t term_of(const Row& row, const BitUnit& unit) const {
    if (task_.form == Form::kPlanes) return 0;
    return -2 * task_.x_counts[row.index * task_.weight.segments + unit.segment];
  }

  __device__ __forceinline__ uint4 constants_at(int eighth, Field field) const {
    return stages_.field(constants_.index, field)[4 * eighth + lane_ % 4];
  }

  // dot_of_set() counts the set bits of both so often: as a power of two.
  __device__ __forceinline__ int shift() const { return task_.form == Form::kPlanes ? 0 : 2; }

  // scale * float(dot) of the sum in register (eighth, upper, odd), whose columns' constants those are.
  __device__ __forceinline__ float scaled(int32_t sum, int32_t term, const uint4& constants, int odd) const {
    const int32_t dot = (sum << shift()) + term + static_cast<int32_t>(odd ? constants.y : constants.x);
    return float_of_bits(odd ? constants.w : constants.z) * static_cast<float>(dot);
  }

  template <class Use>
  __device__ __forceinline__ void each_sum(const Use& use) const {
#pragma unroll
    for (int eighth = 0; eighth < kEighths; ++eighth) {
      const uint4 constants = constants_at(eighth, kTermsAndScales);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        use(wgmma::fragment_register(eighth, i / 2, i % 2), i / 2, i % 2, constants);
      }
    }
  }

  __device__ __forceinline__ void add_unit(const int32_t (&sums)[COLUMNS / 2], const int32_t (&terms)[2],
                                           float (&t)[kTotals]) const {
    each_sum([&](int at, int upper, int odd, const uint4& constants) {
      t[at] = t[at] + scaled(sums[at], terms[upper], constants, odd);
    });
  }

  // Of a tile whose rows of the weight have one sum each.
  __device__ __forceinline__ void finish_tile(const Row (&rows)[2], int64_t first,
                                              int32_t (&sums)[COLUMNS / 2], const int32_t (&terms)[2]) const {
    if constexpr (OUT == Out::kSigns) {
      if (is_quick(rows)) {
        store_signs_by_dots(rows, first, sums, terms);
        return;
      }
    }
    scale_in_place(sums, terms);
    store(rows, first, [&](int at) { return float_of_bits(static_cast<uint32_t>(sums[at])); });
  }

  // t of the one unit, in the registers of the sums. It begins at 0, and 0 + (-0) is 0: of signs, which
  // compare alike, it does not matter.
  __device__ __forceinline__ void scale_in_place(int32_t (&sums)[COLUMNS / 2],
                                                 const int32_t (&terms)[2]) const {
    each_sum([&](int at, int upper, int odd, const uint4& constants) {
      const float t = scaled(sums[at], terms[upper], constants, odd);
      sums[at] = static_cast<int32_t>(bits_of(OUT == Out::kSigns ? t : 0.0f + t));
    });
  }

  // ---- stores --------------------------------------------------------------------------------------------

  template <class Total>
  __device__ __forceinline__ void store(const Row (&rows)[2], int64_t first, const Total& total) const {
    if constexpr (OUT == Out::kSigns) {
      store_signs(rows, first, columns_from(first), total);
    } else {
      store_values(rows, first, columns_from(first), total);
    }
  }

  // Rows of the weight that there are in a tile.
  __device__ __forceinline__ int32_t columns_from(int64_t first) const {
    return static_cast<int32_t>(least<int64_t>(task_.weight.rows - first, COLUMNS));
  }

  template <class Total>
  __device__ __forceinline__ void store_values(const Row (&rows)[2], int64_t first, int32_t columns,
                                               const Total& total) const {
    constexpr int kBytes = OUT == Out::kFloat ? 4 : 2;
    const BitResult& r = task_.result;
    const int64_t step = r.channel_stride * kBytes;
    const bool bf16 = r.dtype == BITIMPL_BF16;
    char* to[2];
    bool pairs[2];
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      to[upper] = static_cast<char*>(r.y) + rows[upper].place * kBytes + (first + 2 * (lane_ % 4)) * step;
      pairs[upper] = step == kBytes && reinterpret_cast<uintptr_t>(to[upper]) % (2 * kBytes) == 0;
    }
#pragma unroll
    for (int eighth = 0; eighth < kEighths; ++eighth) {
      const int32_t left = columns - wgmma::fragment_column(lane_, eighth, 0);
      const uint4 constants = constants_at(eighth, kBiasesAndLower);
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const int at = wgmma::fragment_register(eighth, upper, 0);
        const float y0 = total(at) * rows[upper].scale + float_of_bits(constants.x);
        const float y1 = total(at + 1) * rows[upper].scale + float_of_bits(constants.y);
        if (!rows[upper].there) continue;
        char* here = to[upper] + 8 * eighth * step;
        if constexpr (OUT == Out::kFloat) {
          if (pairs[upper] && left > 1) {
            store_words(here, uint2{bits_of(y0), bits_of(y1)});
          } else {
            if (left > 0) *reinterpret_cast<float*>(here) = y0;
            if (left > 1) *reinterpret_cast<float*>(here + step) = y1;
          }
        } else {
          const uint16_t h0 = bf16 ? bf16_of_float(y0) : f16_of_float(y0);
          const uint16_t h1 = bf16 ? bf16_of_float(y1) : f16_of_float(y1);
          if (pairs[upper] && left > 1) {
            *reinterpret_cast<uint32_t*>(here) = h0 | static_cast<uint32_t>(h1) << 16;
          } else {
            if (left > 0) *reinterpret_cast<uint16_t*>(here) = h0;
            if (left > 1) *reinterpret_cast<uint16_t*>(here + step) = h1;
          }
        }
      }
    }
  }

  // Column c of a token is bit c % 32 of its word c / 32, of which each of four lanes makes two in eight.
  template <class Total>
  __device__ __forceinline__ void store_signs(const Row (&rows)[2], int64_t first, int32_t columns,
                                              const Total& total) const {
    uint32_t words[2][kSignWords] = {};
    bool finite[2] = {true, true};
#pragma unroll
    for (int eighth = 0; eighth < kEighths; ++eighth) {
      const uint4 biases_lower = constants_at(eighth, kBiasesAndLower);
      const uint4 upper_least = constants_at(eighth, kUpperAndLeast);
      const uint4 most_of = constants_at(eighth, kMost);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int upper = i / 2;
        const int odd = i % 2;
        const float y = total(wgmma::fragment_register(eighth, upper, odd)) * rows[upper].scale +
                        float_of_bits(odd ? biases_lower.y : biases_lower.x);
        const bool above = float_of_bits(odd ? biases_lower.w : biases_lower.z) <= y;
        const bool below = y <= float_of_bits(odd ? upper_least.y : upper_least.x);
        finite[upper] &= float_of_bits(odd ? upper_least.w : upper_least.z) <= y;
        finite[upper] &= y <= float_of_bits(odd ? most_of.y : most_of.x);
        words[upper][eighth / 4] |= above & below ? 1u << (8 * (eighth % 4) + odd) : 0u;
      }
    }
    put_signs(rows, first, columns, words, finite);
  }

  // Whether every sign of the warp's tokens can be told by its dot product: scales are 1, or NaN, where no
  // sign is set.
  __device__ __forceinline__ bool is_quick(const Row (&rows)[2]) const {
    bool quick = true;
#pragma unroll
    for (int i = 0; i < kPutters; ++i) quick &= stages_.quick[constants_.index * kPutters + i] != 0;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const float scale = rows[upper].scale;
      quick &= scale == 1.0f || scale != scale;
    }
    return ballot(!quick) == 0;
  }

  __device__ __forceinline__ void store_signs_by_dots(const Row (&rows)[2], int64_t first,
                                                      const int32_t (&sums)[COLUMNS / 2],
                                                      const int32_t (&terms)[2]) const {
    uint32_t words[2][kSignWords] = {};
#pragma unroll
    for (int eighth = 0; eighth < kEighths; ++eighth) {
      const uint4 constants = constants_at(eighth, kTermsAndCounts);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int upper = i / 2;
        const int odd = i % 2;
        const uint32_t sum = static_cast<uint32_t>(sums[wgmma::fragment_register(eighth, upper, odd)]);
        const uint32_t term = static_cast<uint32_t>(terms[upper]) + (odd ? constants.y : constants.x);
        const bool set = (sum << shift()) + term < (odd ? constants.w : constants.z);
        words[upper][eighth / 4] |= set ? 1u << (8 * (eighth % 4) + odd) : 0u;
      }
    }
    const bool finite[2] = {rows[0].scale == 1.0f, rows[1].scale == 1.0f};
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
#pragma unroll
      for (int i = 0; i < kSignWords; ++i) words[upper][i] = finite[upper] ? words[upper][i] : 0;
    }
    put_signs(rows, first, columns_from(first), words, finite);
  }

  // From the words that each lane has its part of to y.
  __device__ __forceinline__ void put_signs(const Row (&rows)[2], int64_t first, int32_t columns,
                                            uint32_t (&words)[2][kSignWords], const bool (&finite)[2]) const {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
#pragma unroll
      for (int i = 0; i < kSignWords; ++i) words[upper][i] <<= 2 * (lane_ % 4);
      uint32_t own[kSignWords / 4];
      join_lanes(words[upper], own);
      if (!rows[upper].there) continue;
      if (!finite[upper]) task_.result.signs.y_scale[rows[upper].sample] = NAN;
      constexpr int kLaneBytes = kSignWords / 4 * 4;
      const int64_t at = (rows[upper].place + first) / 8 + lane_ % 4 * kLaneBytes;
      const int left = ceil_div(columns, 8) - lane_ % 4 * kLaneBytes;
      store_bytes(static_cast<char*>(task_.result.y) + at, own, left);
    }
  }

  // Of four lanes' words the union, a quarter of them in each lane.
  __device__ __forceinline__ void join_lanes(const uint32_t (&words)[kSignWords],
                                             uint32_t (&own)[kSignWords / 4]) const {
    constexpr int kHalf = kSignWords / 2;
    constexpr int kQuarter = kSignWords / 4;
    const bool upper_half = (lane_ & 2) != 0;
    const bool upper_quarter = (lane_ & 1) != 0;
    uint32_t half[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const uint32_t given = shuffle_xor(upper_half ? words[i] : words[kHalf + i], 2);
      half[i] = (upper_half ? words[kHalf + i] : words[i]) | given;
    }
#pragma unroll
    for (int i = 0; i < kQuarter; ++i) {
      const uint32_t given = shuffle_xor(upper_quarter ? half[i] : half[kQuarter + i], 1);
      own[i] = (upper_quarter ? half[kQuarter + i] : half[i]) | given;
    }
  }

  // The first `left` bytes of words, with one store where it can be.
  __device__ __forceinline__ void store_bytes(char* to, const uint32_t (&words)[kSignWords / 4],
                                              int left) const {
    constexpr int kBytes = kSignWords / 4 * 4;
    if (left >= kBytes && reinterpret_cast<uintptr_t>(to) % kBytes == 0) {
      if constexpr (kBytes == 8) {
        store_words(to, uint2{words[0], words[1]});
      } else {
        *reinterpret_cast<uint32_t*>(to) = words[0];
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kBytes; ++i) {
      if (i < left) to[i] = static_cast<char>(words[i / 4] >> 8 * (i % 4));
    }
  }

  const Job& job_;
  const BitTask& task_;
  const Stages<COLUMNS>& stages_;
  const int lane_;
  Ring stage_;
  Turn<kConstantBuffers> constants_;
};

}  // namespace bgmma
}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BGMMA_TILE_CUH
