// How values become words of bits. A warp takes a chunk of 32 words at a time: its lanes load 16 bytes each,
// side by side, until they have 1024 values, and exchange bits until each has a word.
#ifndef BITIMPL_CUDA_BIT_WORDS_CUH
#define BITIMPL_CUDA_BIT_WORDS_CUH

#include "bits.h"
#include "magnitudes.cuh"

namespace bitimpl {
namespace cuda {

// What begins a word of its own: the segments of a row, the groups of pixels, the taps of a weight's row. A
// unit lies in one chunk or begins one.
struct Units {
  int64_t count;
  int32_t columns;  // of a unit but the last, and words, with those that fill it up
  int32_t words;
  int32_t last_columns;
  int32_t last_words;
  int32_t in_chunk;    // whole units in a chunk; 0: a unit takes several chunks
  int32_t reciprocal;  // word / words = word * reciprocal >> 16 in a chunk
};

inline Units make_units(int64_t count, int64_t columns, int64_t last_columns, int32_t words, int32_t last_words) {
  Units u = {count, static_cast<int32_t>(columns), words, static_cast<int32_t>(last_columns), last_words, 0, 0};
  if (words <= kWarp) {
    u.in_chunk = kWarp / words;
    u.reciprocal = 65536 / words + 1;
  }
  return u;
}

// Items of whole units, of one chunk or (in_chunk == 0) of one unit.
__host__ __device__ __forceinline__ int64_t items_of(const Units& u) {
  return u.in_chunk == 0 ? u.count : ceil_div<int64_t>(u.count, u.in_chunk);
}
__host__ __device__ __forceinline__ int32_t chunks_of_item(const Units& u) {
  return u.in_chunk == 0 ? ceil_div(u.words, kWarp) : 1;
}

// A word of a unit, and how many columns there are from its first on (any number).
struct WordPlace {
  int64_t unit;
  int32_t inside;
  int32_t columns;
  bool exists;
};

__device__ __forceinline__ WordPlace word_at(const Units& u, int64_t item, int32_t chunk, int32_t word) {
  WordPlace place = {item, chunk * kWarp + word, 0, false};
  if (u.in_chunk > 0) {
    const int32_t of_chunk = word * u.reciprocal >> 16;
    place.unit = item * u.in_chunk + of_chunk;
    place.inside = word - of_chunk * u.words;
    if (of_chunk >= u.in_chunk) place.unit = u.count;
  }
  const bool last = place.unit == u.count - 1;
  place.exists = place.unit < u.count && place.inside < (last ? u.last_words : u.words);
  if (place.exists) place.columns = (last ? u.last_columns : u.columns) - kWarp * place.inside;
  return place;
}

// Of an item of one chunk: the sum of `value` over the words of its unit `lane`.
__device__ __forceinline__ int32_t over_unit(const Units& u, int32_t value) {
  const int lane = threadIdx.x % kWarp;
  const int together = least(u.words, kChunkWords);  // words: 1, 2 or a multiple of 4
  for (int mask = 1; mask < together; mask *= 2) value += shuffle_xor(value, mask);
  int32_t sum = 0;
  for (int i = 0; i < u.words; i += together) sum += shuffle_from(value, (lane * u.words + i) % kWarp);
  return sum;
}

__device__ __forceinline__ int32_t over_warp(int32_t value) {
  for (int mask = 1; mask < kWarp; mask *= 2) value += shuffle_xor(value, mask);
  return value;
}

// The lowest `count` bits, any number.
__device__ __forceinline__ uint32_t low_bits(int32_t count) {
  if (count >= 32) return 0xffffffffu;
  return count <= 0 ? 0u : (1u << count) - 1u;
}

// 32 bits from bit `at` on, of which `left` exist (any number); the others are 0.
__device__ __forceinline__ uint32_t load_bits(const uint8_t* bits, int64_t at, int32_t left) {
  const uint8_t* from = bits + at / 8;
  const int32_t shift = static_cast<int32_t>(at % 8);
  if (shift == 0 && left >= 32 && reinterpret_cast<uintptr_t>(from) % sizeof(uint32_t) == 0) {
    return *reinterpret_cast<const uint32_t*>(from);
  }
  const int32_t end = shift + least(left, 32);
  uint64_t bytes = 0;
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    if (8 * i < end && left > 0) bytes |= static_cast<uint64_t>(from[i]) << 8 * i;
  }
  return static_cast<uint32_t>(bytes >> shift) & low_bits(left);
}

// 16 bytes of values, of which `left` exist (any number); the others are 0.
template <class T>
__device__ __forceinline__ uint4 load_values(const T* from, int32_t left) {
  constexpr int kValues = 16 / sizeof(T);
  if (left >= kValues && reinterpret_cast<uintptr_t>(from) % 16 == 0) return *reinterpret_cast<const uint4*>(from);
  constexpr int kOfWord = 4 / sizeof(T);
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word[i] = 0;
#pragma unroll 1
    for (int j = least(left - kOfWord * i, kOfWord) - 1; j >= 0; --j) word[i] = word[i] << 16 | from[kOfWord * i + j];
  }
  return {word[0], word[1], word[2], word[3]};
}

// Four values of a pair of words of float16 or bfloat16.
__device__ __forceinline__ void widen(uint32_t low, uint32_t high, int32_t dtype, float (&x)[4]) {
  if (dtype == BITIMPL_BF16) {
    x[0] = float_of_bits(low << 16);
    x[1] = float_of_bits(low & 0xffff0000u);
    x[2] = float_of_bits(high << 16);
    x[3] = float_of_bits(high & 0xffff0000u);
    return;
  }
  x[0] = float_of_f16(static_cast<uint16_t>(low));
  x[1] = float_of_f16(static_cast<uint16_t>(low >> 16));
  x[2] = float_of_f16(static_cast<uint16_t>(high));
  x[3] = float_of_f16(static_cast<uint16_t>(high >> 16));
}

// Exchanges blocks of 16 bits with the lane `mask` away, then blocks of 8: a step each of a transposition in
// which lanes are rows.
__device__ __forceinline__ uint32_t swap_halves(uint32_t word, int mask) {
  const uint32_t other = shuffle_xor(word, mask);
  return permute_bytes(word, other, (threadIdx.x & mask) == 0 ? 0x5410 : 0x3276);
}
__device__ __forceinline__ uint32_t swap_bytes(uint32_t word, int mask) {
  const uint32_t other = shuffle_xor(word, mask);
  return permute_bytes(word, other, (threadIdx.x & mask) == 0 ? 0x6240 : 0x3715);
}
__device__ __forceinline__ uint32_t swap_nibbles(uint32_t word, int mask) {
  const uint32_t other = shuffle_xor(word, mask);
  return (threadIdx.x & mask) == 0 ? (word & 0x0f0f0f0fu) | (other & 0x0f0f0f0fu) << 4
                                   : (word & 0xf0f0f0f0u) | (other & 0xf0f0f0f0u) >> 4;
}

// The columns of a word: where they begin, in elements from the pointer they go with, and how many there are
// from there on (any number).
struct Columns {
  int64_t first;
  int32_t left;
};

// What lane `lane` says, from `offset` columns on.
__device__ __forceinline__ Columns columns_of(const Columns& own, int lane, int offset) {
  return {shuffle_from(own.first, lane) + offset, shuffle_from(own.left, lane) - offset};
}

// The bits of four values, a nibble each: what a taker makes of them.
struct Nibbles {
  uint32_t of[2];
};

// A chunk of values through a taker: Taker::kBits (0, 1 or 2) bits a value. `own`: the columns of word
// `lane`. taker.take(x, first) sees four values from column `first` on, 0 for those that do not exist, whose
// bits count for nothing. Lane i gets word i of each kind of bit.
template <class Taker>
__device__ __forceinline__ void take_chunk(const void* x, int32_t dtype, const Columns& own, Taker& taker,
                                           uint32_t (&words)[2]) {
  constexpr int kLoads = 4;  // under way at once
  const int lane = threadIdx.x % kWarp;
  uint32_t packed[2] = {};
  uint32_t mask = 0;
  uint4 raw[kLoads];
  int64_t first[kLoads];
  if (dtype == BITIMPL_F32) {
#pragma unroll 1
    for (int begin = 0; begin < 8; begin += kLoads) {
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const Columns c = columns_of(own, 4 * (begin + u) + lane / 8, lane % 8 * 4);
        first[u] = c.first;
        raw[u] = load_values(static_cast<const uint32_t*>(x) + c.first, c.left);
        mask |= (low_bits(c.left) & 0xfu) << 4 * (begin + u);
      }
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const float four[4] = {float_of_bits(raw[u].x), float_of_bits(raw[u].y), float_of_bits(raw[u].z),
                               float_of_bits(raw[u].w)};
        const Nibbles nibbles = taker.take(four, first[u]);
#pragma unroll
        for (int bit = 0; bit < Taker::kBits; ++bit) packed[bit] |= nibbles.of[bit] << 4 * (begin + u);
      }
    }
#pragma unroll
    for (int bit = 0; bit < Taker::kBits; ++bit) {  // lane 8 i + u has word 4 u + i
      const uint32_t word = swap_nibbles(swap_bytes(swap_halves(packed[bit] & mask, 4), 2), 1);
      words[bit] = shuffle_from(word, lane % 4 * 8 + lane / 4);
    }
    return;
  }
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const Columns c = columns_of(own, 8 * u + lane / 4, lane % 4 * 8);
    first[u] = c.first;
    raw[u] = load_values(static_cast<const uint16_t*>(x) + c.first, c.left);
    mask |= (low_bits(c.left) & 0xffu) << 8 * u;
  }
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float four[4];
      widen(half == 0 ? raw[u].x : raw[u].z, half == 0 ? raw[u].y : raw[u].w, dtype, four);
      const Nibbles nibbles = taker.take(four, first[u] + 4 * half);
#pragma unroll
      for (int bit = 0; bit < Taker::kBits; ++bit) packed[bit] |= nibbles.of[bit] << (8 * u + 4 * half);
    }
  }
#pragma unroll
  for (int bit = 0; bit < Taker::kBits; ++bit) {  // lane 4 i + u has word 8 u + i
    const uint32_t word = swap_bytes(swap_halves(packed[bit] & mask, 2), 1);
    words[bit] = shuffle_from(word, lane % 8 * 4 + lane / 8);
  }
}

// ---- takers --------------------------------------------------------------------------------------------

struct TakeMagnitudes {
  static constexpr int kBits = 0;
  Magnitudes seen;
  __device__ __forceinline__ Nibbles take(const float (&x)[4], int64_t) {
    seen.add(x);
    return {};
  }
};

// q = x >= 0.
struct TakeSigns {
  static constexpr int kBits = 1;
  Magnitudes seen;
  __device__ __forceinline__ Nibbles take(const float (&x)[4], int64_t) {
    seen.add(x);
    uint32_t nibble = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) nibble |= static_cast<uint32_t>(x[i] >= 0.0f) << i;
    return {{nibble, 0}};
  }
};

// x > threshold and x < -threshold, and the magnitudes of both.
struct TakeTernary {
  static constexpr int kBits = 2;
  float threshold;
  Magnitudes kept;
  __device__ __forceinline__ Nibbles take(const float (&x)[4], int64_t) {
    Nibbles nibbles = {};
    float beyond[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool above = x[i] > threshold;
      const bool below = x[i] < -threshold;
      nibbles.of[0] |= static_cast<uint32_t>(above) << i;
      nibbles.of[1] |= static_cast<uint32_t>(below) << i;
      beyond[i] = above || below ? x[i] : 0.0f;
    }
    kept.add(beyond);
    return nibbles;
  }
};

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BIT_WORDS_CUH
