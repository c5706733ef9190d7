// Ternary GEMV and GEMM for AVX-512 with VNNI and VBMI.
//
// The packed byte of a row group holds one digit (0, 1, 2 = weight + 1) of 4 or 5 rows. Three
// things make the products cheap:
//   * A digit is masked, never shifted: bits 2j hold digit * 4^j, vpdpbusd takes it as its
//     unsigned operand, and the sum is shifted right by 2j once.
//   * The offset of 1 is folded: dot(weight, q) = dot(digit, q) - sum(q), and sum(q) comes with
//     the activations.
//   * base3: one table look-up turns a byte into the two_bit byte of its digits 0..3. Digit 4 is
//     never extracted: the byte itself is a fine unsigned operand, and
//         81 dot(d4, q) = dot(byte, q) - dot(d0, q) - 3 dot(d1, q) - 9 dot(d2, q) - 27 dot(d3, q)
//     holds modulo 2^32, where 81 has an inverse, so even a wrapped sum gives dot(d4, q) exactly.
//
// Two ways to walk a block:
//   rows   one activation vector: an accumulator a row, 64 columns an instruction, sums across the
//          register at the end of the segment. The fastest for M = 1.
//   lanes  up to 16 activation vectors at once: dword j of lane g accumulates row P * g + j, four
//          columns an instruction, activations broadcast. No sums across registers, so short
//          segments cost nothing extra, and a decoded register serves every vector of the tile.
// An int16 activation is two int8 vectors of the tile: dot = 256 dot(hi) + dot(lo).
#include "simd_avx512.h"

namespace bitimpl {

void ternary_float_avx512(const LinearTask& task, const Tile& tile);

namespace {

// Masked digits scale a sum by up to 64: 2^16 columns of 128 * 128 stay inside int32.
constexpr int64_t kMaxRun = 1 << 16;
// Segments from this length on are worth the sums across registers of the `rows` walk.
constexpr int64_t kRowsWalk = 256;
constexpr uint32_t kInverseOf81 = 0x781948b1u;
static_assert(kInverseOf81 * 81u == 1u, "81 * inverse = 1 modulo 2^32");

// accumulate() with the four signed bytes at `s` in every dword; the broadcast is part of the load.
inline void accumulate(__m512i& sum, __m512i u, const int8_t* s) {
  using Dword = const int8_t[4];
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(u), "m"(*reinterpret_cast<Dword*>(s)));
}

inline __m512i digit_mask(int j) { return _mm512_set1_epi8(static_cast<char>(3 << (2 * j))); }

// Dwords 0..3 of each lane keep digits 0..3.
inline __m512i lane_digit_mask() {
  return _mm512_broadcast_i32x4(_mm_set_epi32(static_cast<int>(0xc0c0c0c0u), 0x30303030, 0x0c0c0c0c,
                                              0x03030303));
}

// Exact digit sums of a segment: `main` in lane order; `raw` sums the base3 byte itself, lane g in
// four parts.
struct Sums {
  __m512i main;
  __m512i raw;
};

inline void prefetch_step(const uint8_t* codes) {
  for (int line = 0; line < kBlockGroups; ++line) {
    _mm_prefetch(reinterpret_cast<const char*>(codes) + kPrefetch + 64 * line, _MM_HINT_T0);
  }
}

// ---- rows ---------------------------------------------------------------------------------

// Dword j of every lane of the result is that lane's sum of row j. digit[j] sums digit * 4^j; base3:
// digit[3] those of all four.
template <bool BASE3>
inline __m512i sum_rows(const __m512i digit[4]) {
  const __m512i a1 = _mm512_srai_epi32(digit[1], 2);
  const __m512i a2 = _mm512_srai_epi32(digit[2], 4);
  __m512i last = digit[3];
  if (BASE3) {
    BITIMPL_UNROLL
    for (int j = 0; j < 3; ++j) last = _mm512_sub_epi32(last, digit[j]);
  }
  const __m512i a3 = _mm512_srai_epi32(last, 6);
  const __m512i low =
      _mm512_add_epi32(_mm512_unpacklo_epi32(digit[0], a1), _mm512_unpackhi_epi32(digit[0], a1));
  const __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(a2, a3), _mm512_unpackhi_epi32(a2, a3));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}

// FULL: `columns` is a multiple of 64 and the block has all its groups. The two cases are separate
// functions because a compiler that sees both in one loop keeps the accumulators in memory.
template <bool BASE3, bool FULL>
__attribute__((noinline)) void walk_rows_run(const uint8_t* codes, int64_t groups, const int8_t* x,
                                             int64_t columns, Sums* sums) {
  const Base3Decoder decoder;
  const __m512i masks[4] = {digit_mask(0), digit_mask(1), digit_mask(2), digit_mask(3)};
  __m512i digit[kBlockGroups][4], raw[kBlockGroups];
  BITIMPL_UNROLL
  for (int g = 0; g < kBlockGroups; ++g) {
    BITIMPL_UNROLL
    for (int j = 0; j < 4; ++j) digit[g][j] = _mm512_setzero_si512();
    raw[g] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < columns; k += kStep) {
    const int64_t n = FULL || columns - k > kStep ? kStep : columns - k;
    if (FULL) prefetch_step(codes);
    const __m512i activations = _mm512_loadu_si512(x + k);
    BITIMPL_UNROLL
    for (int g = 0; g < kBlockGroups; ++g) {
      const __m512i bytes = FULL ? _mm512_loadu_si512(codes + 64 * g) : load_group(codes, groups, g, n);
      const __m512i two_bit = BASE3 ? decoder.two_bit(bytes) : bytes;
      BITIMPL_UNROLL
      for (int j = 0; j < 3; ++j) {
        accumulate(digit[g][j], _mm512_and_si512(two_bit, masks[j]), activations);
      }
      // base3 is bound by its instructions: all four digits at once, the others taken off by sum_rows.
      accumulate(digit[g][3], BASE3 ? two_bit : _mm512_and_si512(two_bit, masks[3]), activations);
      if (BASE3) accumulate(raw[g], bytes, activations);
    }
    codes += FULL ? kBlockGroups * kStep : groups * n;
  }
  __m512i by_group[kBlockGroups];
  BITIMPL_UNROLL
  for (int g = 0; g < kBlockGroups; ++g) by_group[g] = sum_rows<BASE3>(digit[g]);
  sums->main = _mm512_add_epi32(sums->main, sum_of_transposed_lanes(by_group));
  if (BASE3) sums->raw = _mm512_add_epi32(sums->raw, sum_of_transposed_lanes(raw));
}

template <bool BASE3>
Sums walk_rows(const uint8_t* codes, int64_t groups, const int8_t* x, int64_t columns) {
  Sums sums = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t begin = 0; begin < columns; begin += kMaxRun) {
    const int64_t run = columns - begin < kMaxRun ? columns - begin : kMaxRun;
    const int64_t full = groups == kBlockGroups ? run / kStep * kStep : 0;
    const uint8_t* at = codes + begin * groups;
    if (full > 0) walk_rows_run<BASE3, true>(at, groups, x + begin, full, &sums);
    if (run > full) {
      walk_rows_run<BASE3, false>(at + full * groups, groups, x + begin + full, run - full, &sums);
    }
  }
  return sums;
}

// ---- lanes --------------------------------------------------------------------------------

// Activations of a tile of T vectors: for each segment, for each 16 of its columns, 16 bytes of
// every vector. One vector needs no copy: its own bytes are in this order.
template <int T>
struct PackedTokens {
  const int8_t* bytes;
  int64_t segment_stride;
};

int64_t packed_segment(int64_t segment) { return (segment + 15) / 16 * 16; }

// T vectors; FULL as above.
template <bool BASE3, int T, bool FULL>
__attribute__((noinline)) void walk_lanes_run(const uint8_t* codes, int64_t groups, const int8_t* x,
                                              int64_t columns, Sums* sums) {
  const Base3Decoder decoder;
  const __m512i mask = lane_digit_mask();
  // A sum waits about 4 cycles for its last addition: few vectors take turns on several sums.
  constexpr int kTurns = T <= 2 ? 4 : T <= 4 ? 2 : 1;
  __m512i digit[kTurns][T], raw[T];
  BITIMPL_UNROLL
  for (int i = 0; i < T; ++i) {
    raw[i] = _mm512_setzero_si512();
    BITIMPL_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) digit[turn][i] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < columns; k += kStep) {
    const int64_t n = FULL || columns - k > kStep ? kStep : columns - k;
    if (FULL) prefetch_step(codes);
    __m512i by_group[kBlockGroups], bytes[4];
    BITIMPL_UNROLL
    for (int g = 0; g < kBlockGroups; ++g) {
      by_group[g] = FULL ? _mm512_loadu_si512(codes + 64 * g) : load_group(codes, groups, g, n);
    }
    transpose_lanes(by_group, bytes);
    codes += FULL ? kBlockGroups * kStep : groups * n;
    BITIMPL_UNROLL
    for (int q = 0; q < 4; ++q) {
      if (!FULL && 16 * q >= n) break;
      const __m512i two_bit = BASE3 ? decoder.two_bit(bytes[q]) : bytes[q];
      BITIMPL_UNROLL
      for (int r = 0; r < 4; ++r) {
        const auto dword = static_cast<_MM_PERM_ENUM>(r * 0x55);
        const __m512i masked = _mm512_and_si512(_mm512_shuffle_epi32(two_bit, dword), mask);
        BITIMPL_UNROLL
        for (int i = 0; i < T; ++i) accumulate(digit[r % kTurns][i], masked, x + 16 * i + 4 * r);
      }
      if (BASE3) {
        BITIMPL_UNROLL
        for (int i = 0; i < T; ++i) {
          const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16 * i));
          accumulate(raw[i], bytes[q], _mm512_broadcast_i32x4(sixteen));
        }
      }
      x += 16 * T;
    }
  }
  const __m512i shifts = _mm512_broadcast_i32x4(_mm_set_epi32(6, 4, 2, 0));
  BITIMPL_UNROLL
  for (int i = 0; i < T; ++i) {
    BITIMPL_UNROLL
    for (int turn = 1; turn < kTurns; ++turn) {
      digit[0][i] = _mm512_add_epi32(digit[0][i], digit[turn][i]);
    }
    sums[i].main = _mm512_add_epi32(sums[i].main, _mm512_srav_epi32(digit[0][i], shifts));
    if (BASE3) sums[i].raw = _mm512_add_epi32(sums[i].raw, raw[i]);
  }
}

template <bool BASE3, int T>
void walk_lanes(const uint8_t* codes, int64_t groups, const int8_t* x, int64_t columns,
                Sums* sums) {
  for (int i = 0; i < T; ++i) sums[i] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t begin = 0; begin < columns; begin += kMaxRun) {
    const int64_t run = columns - begin < kMaxRun ? columns - begin : kMaxRun;
    const int64_t full = groups == kBlockGroups ? run / kStep * kStep : 0;
    const uint8_t* at = codes + begin * groups;
    const int8_t* q = x + begin * T;
    if (full > 0) walk_lanes_run<BASE3, T, true>(at, groups, q, full, sums);
    if (run > full) {
      walk_lanes_run<BASE3, T, false>(at + full * groups, groups, q + full * T, run - full, sums);
    }
  }
}

// ---- dot products to results ----------------------------------------------------------------

struct Dots {
  __m512i main;
  __m512i fifth;
};

template <bool BASE3>
inline Dots dots_of(const Sums& sums, int32_t activation_sum) {
  const __m512i offset = _mm512_set1_epi32(activation_sum);
  Dots dots = {_mm512_sub_epi32(sums.main, offset), _mm512_setzero_si512()};
  if (BASE3) {
    const __m512i powers = _mm512_broadcast_i32x4(_mm_set_epi32(27, 9, 3, 1));
    __m512i rest = _mm512_sub_epi32(sums.raw, _mm512_mullo_epi32(sums.main, powers));
    rest = _mm512_add_epi32(rest, _mm512_shuffle_epi32(rest, static_cast<_MM_PERM_ENUM>(0x4e)));
    rest = _mm512_add_epi32(rest, _mm512_shuffle_epi32(rest, static_cast<_MM_PERM_ENUM>(0xb1)));
    const __m512i inverse = _mm512_set1_epi32(static_cast<int32_t>(kInverseOf81));
    dots.fifth = _mm512_sub_epi32(_mm512_mullo_epi32(rest, inverse), offset);
  }
  return dots;
}

// t of impl.h for one token and block, in lane order.
struct Totals {
  __m512 main;
  __m512 fifth;
};

inline void add_scaled(__m512& t, __m512 scale, __m512 dot) {
  t = _mm512_add_ps(t, _mm512_mul_ps(scale, dot));
}

// A tile of T vectors: `tokens` tokens of `planes` vectors each, from token `first` on; vectors
// past tokens * planes are zeros and dropped. ROWS takes the `rows` walk (T = 1).
template <bool BASE3, bool ROWS, int T>
void run_block(const LinearTask& task, const PackedTokens<T>& x, int64_t first, int64_t tokens,
               int64_t block_index) {
  const int planes = task.x.planes;
  const Block block = block_at<BASE3>(task, block_index);
  Totals t[T];
  for (int i = 0; i < T; ++i) t[i] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  ScaleWindow<BASE3> scales;
  for (int64_t c = 0; c < task.components; ++c) {
    for (int64_t s = 0; s < task.segments; ++s) {
      const int64_t at = s % ScaleWindow<BASE3>::kSegments;
      if (at == 0) scales.load(task, block, c, s);
      const uint8_t* codes = segment_codes(task, block, c, s);
      const int8_t* activations = x.bytes + s * x.segment_stride;
      const int64_t columns = segment_columns(task, s);
      Sums sums[T];
      if (ROWS) {
        sums[0] = walk_rows<BASE3>(codes, block.groups, activations, columns);
      } else {
        walk_lanes<BASE3, T>(codes, block.groups, activations, columns, sums);
      }
      for (int64_t i = 0; i < tokens; ++i) {
        const int64_t sum_at = (first + i) * task.segments + s;
        const Sums* vector = sums + i * planes;
        const Dots hi = dots_of<BASE3>(vector[0], task.x.sums[0][sum_at]);
        __m512 main = _mm512_cvtepi32_ps(hi.main);
        __m512 fifth = _mm512_cvtepi32_ps(hi.fifth);
        if (T > 1 && planes == 2) {
          const Dots lo = dots_of<BASE3>(vector[1], task.x.sums[1][sum_at]);
          main = combine_planes(hi.main, lo.main);
          fifth = combine_planes(hi.fifth, lo.fifth);
        }
        add_scaled(t[i].main, scales.main[at], main);
        if (BASE3) add_scaled(t[i].fifth, scales.fifth[at], fifth);
      }
    }
  }
  for (int64_t i = 0; i < tokens; ++i) {
    store_block<BASE3>(task, first + i, block, t[i].main, t[i].fifth);
  }
}

template <int T>
PackedTokens<T> pack_tokens(const LinearTask& task, int64_t first, int64_t tokens, int8_t* out) {
  const Activations& x = task.x;
  const int64_t padded = packed_segment(task.segment);
  for (int64_t s = 0; s < task.segments; ++s) {
    const int64_t columns = segment_columns(task, s);
    for (int i = 0; i < T; ++i) {
      int8_t* to = out + s * padded * T + 16 * i;
      const int8_t* from = nullptr;
      if (i < tokens * x.planes) {
        from = x.q[i % x.planes] + (first + i / x.planes) * x.q_stride + s * task.segment;
      }
      for (int64_t k = 0; k < columns; k += 16, to += 16 * T) {
        __m128i sixteen = _mm_setzero_si128();
        if (from != nullptr) sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), sixteen);
      }
    }
  }
  return {out, padded * T};
}

template <bool BASE3, bool ROWS, int T>
void run_tokens(const LinearTask& task, const Tile& tile, int64_t first, int64_t tokens) {
  PackedTokens<T> x;
  if (T == 1) {
    x = {task.x.q[0] + first * task.x.q_stride, task.segment};
  } else {
    x = pack_tokens<T>(task, first, tokens, static_cast<int8_t*>(tile.scratch));
  }
  for (int64_t block = tile.block_begin; block < tile.block_end; ++block) {
    run_block<BASE3, ROWS, T>(task, x, first, tokens, block);
  }
}

// base3 keeps two accumulators a vector, two_bit one.
template <bool BASE3>
constexpr int kMaxVectors = BASE3 ? 8 : 16;

template <bool BASE3>
void run_tile(const LinearTask& task, const Tile& tile) {
  const int planes = task.x.planes;
  const int64_t most = kMaxVectors<BASE3> / planes;
  int64_t first = tile.token_begin;
  while (first < tile.token_end) {
    // Even tiles: 17 tokens go as 9 + 8, not as 16 + 1. A tile is rounded up to a size there is a
    // kernel for.
    const int64_t left = tile.token_end - first;
    const int64_t tiles = (left + most - 1) / most;
    const int64_t tokens = (left + tiles - 1) / tiles;
    const int64_t vectors = tokens * planes;
    if (vectors == 1 && task.segment >= kRowsWalk) {
      run_tokens<BASE3, true, 1>(task, tile, first, tokens);
    } else if (vectors == 1) {
      run_tokens<BASE3, false, 1>(task, tile, first, tokens);
    } else if (vectors == 2) {
      run_tokens<BASE3, false, 2>(task, tile, first, tokens);
    } else if (vectors <= 4) {
      run_tokens<BASE3, false, 4>(task, tile, first, tokens);
    } else if (vectors <= 6) {
      run_tokens<BASE3, false, 6>(task, tile, first, tokens);
    } else if (vectors <= 8) {
      run_tokens<BASE3, false, 8>(task, tile, first, tokens);
    } else if constexpr (!BASE3) {
      if (vectors <= 12) {
        run_tokens<BASE3, false, 12>(task, tile, first, tokens);
      } else {
        run_tokens<BASE3, false, 16>(task, tile, first, tokens);
      }
    }
    first += tokens;
  }
}

}  // namespace

void ternary_avx512(const LinearTask& task, const Tile& tile) {
  if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) {
    ternary_float_avx512(task, tile);
  } else if (bit_panel_serves(task)) {
    bit_panel_avx512(task, tile);
  } else if (panel_serves_avx512(task)) {
    panel_avx512(task, tile);
  } else if (task.format == BITIMPL_BASE3) {
    run_tile<true>(task, tile);
  } else {
    run_tile<false>(task, tile);
  }
}

int64_t ternary_scratch_avx512(const LinearTask& task) {
  if (task.x.kind == BITIMPL_ACTIVATION_FLOAT) return 0;
  if (bit_panel_serves(task)) return bit_panel_scratch_avx512(task);
  if (panel_serves_avx512(task)) return panel_scratch_avx512(task);
  const int64_t vectors = task.x.rows * task.x.planes;
  if (vectors <= 1) return 0;
  const int64_t most = kMaxVectors<false>;
  return task.segments * packed_segment(task.segment) * (vectors < most ? 2 * vectors : most);
}

}  // namespace bitimpl
