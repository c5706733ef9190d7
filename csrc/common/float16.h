// Number formats, one value at a time. Everything has internal linkage, so that a file compiled for one
// instruction set keeps its copy to itself.
#ifndef BITIMPL_COMMON_FLOAT16_H
#define BITIMPL_COMMON_FLOAT16_H

#include <stdint.h>
#include <string.h>

namespace bitimpl {
namespace {

[[maybe_unused]] inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

[[maybe_unused]] inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[maybe_unused]] inline float float_from_bf16(uint16_t half) {
  return float_from_bits(static_cast<uint32_t>(half) << 16);
}

// IEEE binary16 to binary32, exact; the payload of a NaN is kept.
[[maybe_unused]] inline float float_from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu);
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x0400u) {
    // Subnormal: the integer 0..1023 in units of 2^-24 is exact in float32.
    return float_from_bits(sign | bits_from_float(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return float_from_bits(sign | ((magnitude << 13) + 0x38000000u));
}

// Round to nearest even; a NaN stays a (quiet) NaN, what is too large becomes infinity.
[[maybe_unused]] inline uint16_t bf16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

[[maybe_unused]] inline uint16_t f16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 65520
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the value in units of 2^-24 in the low bits, rounded to
    // nearest even by the addition itself.
    const uint32_t shifted = bits_from_float(float_from_bits(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (shifted - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_COMMON_FLOAT16_H
