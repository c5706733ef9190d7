// Bytes of rows that may begin anywhere and end early, in words; and how packed words are walked.
#ifndef BITIMPL_CUDA_BYTES_CUH
#define BITIMPL_CUDA_BYTES_CUH

#include "layout.cuh"

namespace bitimpl {
namespace cuda {

// 4 * WORDS bytes (4 or 8), of which `valid` exist; the others are 0.
template <int WORDS>
__device__ __forceinline__ void load_bytes(const void* from, int valid, uint32_t (&out)[WORDS]) {
  static_assert(WORDS == 1 || WORDS == 2, "words");
  const uint8_t* bytes = static_cast<const uint8_t*>(from);
  if (valid >= 4 * WORDS && reinterpret_cast<uintptr_t>(from) % (4 * WORDS) == 0) {
    if (WORDS == 1) {
      out[0] = *static_cast<const uint32_t*>(from);
    } else {
      const uint2 two = *static_cast<const uint2*>(from);
      out[0] = two.x;
      out[WORDS - 1] = two.y;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < WORDS; ++i) out[i] = 0;
#pragma unroll
  for (int i = 0; i < 4 * WORDS; ++i) {
    if (i < valid) out[i / 4] |= static_cast<uint32_t>(bytes[i]) << 8 * (i % 4);
  }
}

// The first `valid` of four bytes.
__device__ __forceinline__ void store_bytes(void* to, uint32_t word, int valid) {
  if (valid >= 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *static_cast<uint32_t*>(to) = word;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < valid) static_cast<uint8_t*>(to)[i] = static_cast<uint8_t>(word >> 8 * i);
  }
}

// Four 16-bit values as two words, of which `valid` exist; the others are 0.
__device__ __forceinline__ void load_halves(const uint16_t* from, int valid, uint32_t (&out)[2]) {
  if (valid >= 4 && reinterpret_cast<uintptr_t>(from) % sizeof(uint2) == 0) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    out[0] = two.x;
    out[1] = two.y;
    return;
  }
  out[0] = out[1] = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < valid) out[i / 2] |= static_cast<uint32_t>(from[i]) << 16 * (i % 2);
  }
}

// Elements at, at + 1, .. of float32, float16 or bfloat16: the first `valid` of four.
__device__ __forceinline__ void store_floats(void* to, int32_t dtype, int64_t at, const float (&value)[4],
                                             int valid) {
  if (dtype == BITIMPL_F32) {
    float* place = static_cast<float*>(to) + at;
    if (valid >= 4 && reinterpret_cast<uintptr_t>(place) % sizeof(float4) == 0) {
      store_words(place, uint4{bits_of(value[0]), bits_of(value[1]), bits_of(value[2]), bits_of(value[3])});
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) place[i] = value[i];
    }
    return;
  }
  uint16_t* place = static_cast<uint16_t*>(to) + at;
  uint32_t half[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    half[i] = dtype == BITIMPL_BF16 ? bf16_of_float(value[i]) : f16_of_float(value[i]);
  if (valid >= 4 && reinterpret_cast<uintptr_t>(place) % sizeof(uint2) == 0) {
    store_words(place, uint2{half[0] | half[1] << 16, half[2] | half[3] << 16});
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < valid) place[i] = static_cast<uint16_t>(half[i]);
  }
}

// The same way back; what is not valid is 0.
__device__ __forceinline__ void load_floats(const void* from, int32_t dtype, int64_t at, int valid,
                                            float (&value)[4]) {
  if (dtype == BITIMPL_F32) {
    const float* place = static_cast<const float*>(from) + at;
    if (valid >= 4 && reinterpret_cast<uintptr_t>(place) % sizeof(float4) == 0) {
      const float4 four = *reinterpret_cast<const float4*>(place);
      value[0] = four.x;
      value[1] = four.y;
      value[2] = four.z;
      value[3] = four.w;
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = i < valid ? place[i] : 0.0f;
    return;
  }
  uint32_t words[2];
  load_halves(static_cast<const uint16_t*>(from) + at, valid, words);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint16_t half = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
    value[i] = dtype == BITIMPL_BF16 ? float_of_bf16(half) : float_of_f16(half);
  }
}

// a / b for a >= 0 and b > 0 below 2^31: in 32 bits where that will do.
__device__ __forceinline__ int64_t divide(int64_t a, int32_t b) {
  if (a >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// Four columns of a row group: what a thread has in hand.
constexpr int kWordColumns = 4;
constexpr int kStepWords = kStep / kWordColumns;

struct Word {
  int64_t group;
  Step step;
  int32_t column;   // of the step
  int32_t columns;  // that exist, 1 to 4; 0 and less: a word past the end of a short step
  int64_t first;    // column of the row
};

__device__ __forceinline__ Word word_at(const Weight& w, int64_t index) {
  Word word;
  const int64_t step = index / kStepWords;
  word.group = divide(step, w.steps);
  word.step = step_at(w, static_cast<int32_t>(step - word.group * w.steps));
  word.column = static_cast<int32_t>(index % kStepWords) * kWordColumns;
  word.columns = word.step.columns - word.column;
  word.first = word.step.first + word.column;
  return word;
}

// The digits of a word of codes, row by row: a byte a column.
template <int FORMAT>
__device__ __forceinline__ void digits_of(uint32_t word, uint32_t (&digits)[Digits<FORMAT>::kRows]) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  if (FORMAT == BITIMPL_TWO_BIT) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) digits[j] = word >> 2 * j & 0x03030303u;
    return;
  }
  Digits<FORMAT>::operands(word, digits);  // quotients; none is less than three times the next
#pragma unroll
  for (int j = 0; j < kRows - 1; ++j) digits[j] -= 3 * digits[j + 1];
}

// Digits (0, 1, 2, a byte each) of row J as what they add to the bytes of codes.
template <int FORMAT>
__device__ __forceinline__ uint32_t in_place(uint32_t digits, int j) {
  constexpr uint32_t kPowers[5] = {1, 3, 9, 27, 81};
  return FORMAT == BITIMPL_TWO_BIT ? digits << 2 * j : digits * kPowers[j];
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BYTES_CUH
