// Random values and failing, shared by the files of the sanitizer driver.
#ifndef SANITIZE_SUPPORT_H
#define SANITIZE_SUPPORT_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "block.h"
#include "impl.h"

[[noreturn]] inline void stop(const std::string& line, const char* what) {
  std::fprintf(stderr, "case \"%s\": %s; last error: \"%s\"\n", line.c_str(), what,
               bitimpl_last_error());
  std::exit(1);
}

struct Random {
  uint64_t state = 0x9E3779B97F4A7C15ull;
  uint32_t fixed = 0;  // where it is not 0: the next number, always
  uint32_t next() {
    if (fixed != 0) return fixed;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<uint32_t>(state >> 32);
  }
};

inline int64_t size_of(int32_t dtype) { return dtype == BITIMPL_F32 ? 4 : 2; }

// +-1, 1.5, 2, 3 in any of the types: the top bits of the float are all there is to them.
inline void store(uint8_t* to, int32_t dtype, uint32_t random) {
  const uint32_t sign = random & 1;
  const uint32_t half_step = (random >> 1) & 1, exponent = (random >> 2) & 1;
  if (dtype == BITIMPL_F16) {
    const uint16_t bits = static_cast<uint16_t>(sign << 15 | (15 + exponent) << 10 | half_step << 9);
    std::memcpy(to, &bits, 2);
    return;
  }
  const uint32_t bits = sign << 31 | (127 + exponent) << 23 | half_step << 22;
  const uint16_t top = static_cast<uint16_t>(bits >> 16);
  if (dtype == BITIMPL_BF16) std::memcpy(to, &top, 2);
  else std::memcpy(to, &bits, 4);
}

inline void fill(Block& block, int32_t dtype, Random& random) {
  const size_t step = static_cast<size_t>(size_of(dtype));
  for (size_t at = 0; at + step <= block.bytes; at += step)
    store(block.data() + at, dtype, random.next());
  block.seal();
}

// Runs a convolution's case ("conv", then the fields of ConvCase in conv_cases.py) through `isas`.
void run_conv_case(const std::string& line, const std::vector<std::string>& isas);

// The same call with y of signs and, of activation SIGN, with x of signs (sanitize_signs.cpp). `y`: the
// form of y alone.
void check_linear_signs(const std::string& line, const bitimpl_weight& w, const bitimpl_matrix& x,
                        int32_t activation, const void* bias, int32_t bias_dtype);
void check_conv_signs(const std::string& line, const bitimpl_weight& w, const bitimpl_conv& conv,
                      const bitimpl_image& x, const bitimpl_image& y, int32_t activation, const void* bias,
                      int32_t bias_dtype);

// Does on purpose what guard pages must notice: "probe", then what (see guard_probe.cpp).
void run_probe(const std::string& line);

#endif  // SANITIZE_SUPPORT_H
