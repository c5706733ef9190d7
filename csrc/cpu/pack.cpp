// Size of the packed bytes, codes -> bytes and bytes -> codes.
//
// Portable C++ written in loops over the 64 columns of a step (two_bit, base3) or over eight
// codes in one 64-bit word (binary), which compilers turn into vector code.
#include <atomic>
#include <cstdint>
#include <cstring>

#include "../include/impl.h"
#include "../common/checks.h"
#include "../common/layout.h"
#include "parallel.h"

namespace bitimpl {
namespace {

// ---- codes -> bytes -------------------------------------------------------------------------

constexpr uint64_t kOnes = 0x0101010101010101ull;
constexpr uint64_t kGatherBits = 0x0102040810204080ull;  // byte i's bit 0 -> bit 56 + i
constexpr uint64_t kOneBitPerByte = 0x8040201008040201ull;

// Eight codes -1 or +1 -> one byte; false where one of them is neither.
inline bool pack_octet(const int8_t* codes, uint8_t* out) {
  uint64_t word;
  std::memcpy(&word, codes, 8);
  const uint64_t negative = (word >> 7) & kOnes;
  *out = static_cast<uint8_t>(((negative ^ kOnes) * kGatherBits) >> 56);
  return (word ^ (negative * 0xFE)) == kOnes;
}

bool pack_binary_row(const int8_t* codes, int64_t cols, uint8_t* out) {
  bool valid = true;
  int64_t k = 0;
  for (; k + 8 <= cols; k += 8) valid &= pack_octet(codes + k, out + k / 8);
  if (k < cols) {
    int8_t tail[8];
    std::memset(tail, -1, sizeof tail);  // unused bits are 0
    std::memcpy(tail, codes + k, static_cast<size_t>(cols - k));
    valid &= pack_octet(tail, out + k / 8);
  }
  return valid;
}

template <int32_t FORMAT>
bool pack_group(const Geometry& g, int64_t component, int64_t group, const int8_t* codes,
                uint8_t* out) {
  const int64_t first = group * g.per_byte;
  const int64_t present = least(g.per_byte, g.rows - first);
  uint8_t missing = 0;
  each_place<FORMAT>(g.per_byte, [&](auto p) {
    if (p.index >= present) missing += place<FORMAT, decltype(p)::index>();
  });
  uint8_t invalid = 0;
  const int8_t* rows = codes + (component * g.rows + first) * g.cols;
  Steps(g, component, group).each([&](int64_t k, int64_t n, int64_t, int64_t offset) {
    uint8_t* bytes = out + offset;
    std::memset(bytes, missing, static_cast<size_t>(n));
    each_place<FORMAT>(present, [&](auto p) {
      constexpr uint8_t unit = place<FORMAT, decltype(p)::index>();
      const int8_t* row = rows + p.index * g.cols + k;
      for (int64_t i = 0; i < n; ++i) {
        const uint8_t d = static_cast<uint8_t>(row[i] + 1);
        invalid |= d > 2;
        bytes[i] = static_cast<uint8_t>(bytes[i] + d * unit);
      }
    });
  });
  return invalid == 0;
}

const char* format_name(int32_t format) {
  return format == BITIMPL_BINARY ? "binary" : format == BITIMPL_TWO_BIT ? "two_bit" : "base3";
}

// The message for codes that some worker found invalid: the first bad one, in memory order.
int report_bad_code(const Geometry& g, const int8_t* codes) {
  const bool binary = g.format == BITIMPL_BINARY;
  const int64_t matrix = g.rows * g.cols;
  for (int64_t i = 0; i < g.components * matrix; ++i) {
    const int8_t c = codes[i];
    if (c == 1 || c == -1 || (c == 0 && !binary)) continue;
    return fail(BITIMPL_INVALID_ARGUMENT,
                "codes[%lld, %lld, %lld] is %d, but %s codes are %s; quantise the weights first",
                show(i / matrix), show(i % matrix / g.cols), show(i % g.cols), c,
                format_name(g.format),
                binary ? "-1 or +1" : "-1, 0 or +1");
  }
  return BITIMPL_OK;
}

// ---- bytes -> codes -------------------------------------------------------------------------

inline void unpack_octet(uint8_t byte, int8_t* codes) {
  const uint64_t spread = (byte * kOnes) & kOneBitPerByte;
  const uint64_t bits = ((spread + 0x7F * kOnes) >> 7) & kOnes;
  const uint64_t word = ~(bits * 0xFE);  // 1 -> 0x01, 0 -> 0xFF
  std::memcpy(codes, &word, 8);
}

void unpack_binary_row(const uint8_t* bytes, int64_t cols, int8_t* codes) {
  int64_t k = 0;
  for (; k + 8 <= cols; k += 8) unpack_octet(bytes[k / 8], codes + k);
  if (k < cols) {
    int8_t tail[8];
    unpack_octet(bytes[k / 8], tail);
    std::memcpy(codes + k, tail, static_cast<size_t>(cols - k));
  }
}

template <int32_t FORMAT>
bool unpack_group(const Geometry& g, int64_t component, int64_t group, const uint8_t* packed,
                  int8_t* codes) {
  const int64_t first = group * g.per_byte;
  const int64_t present = least(g.per_byte, g.rows - first);
  uint8_t invalid = 0;
  int8_t* rows = codes + (component * g.rows + first) * g.cols;
  Steps(g, component, group).each([&](int64_t k, int64_t n, int64_t, int64_t offset) {
    const uint8_t* bytes = packed + offset;
    each_place<FORMAT>(present, [&](auto p) {
      int8_t* row = rows + p.index * g.cols + k;
      for (int64_t i = 0; i < n; ++i) {
        const int32_t d = digit<FORMAT, decltype(p)::index>(bytes[i]);
        invalid |= d > 2;
        row[i] = static_cast<int8_t>(d - 1);
      }
    });
  });
  return invalid == 0;
}

// ---- entry points, once the arguments are checked --------------------------------------------

struct PackJob {
  Geometry g;
  const int8_t* codes;
  uint8_t* out;
  std::atomic<bool> valid;
};

bool pack_unit(const PackJob& job, int64_t component, int64_t unit) {
  const Geometry& g = job.g;
  if (g.format == BITIMPL_TWO_BIT)
    return pack_group<BITIMPL_TWO_BIT>(g, component, unit, job.codes, job.out);
  if (g.format == BITIMPL_BASE3)
    return pack_group<BITIMPL_BASE3>(g, component, unit, job.codes, job.out);
  const int64_t row = component * g.rows + unit;
  return pack_binary_row(job.codes + row * g.cols, g.cols, job.out + row * g.row_bytes);
}

void pack_range(void* context, int, int64_t begin, int64_t end) {
  PackJob& job = *static_cast<PackJob*>(context);
  bool valid = true;
  for (int64_t unit = begin; unit < end; ++unit)
    for (int64_t c = 0; c < job.g.components; ++c) valid &= pack_unit(job, c, unit);
  if (!valid) job.valid = false;
}

struct UnpackJob {
  Geometry g;
  const uint8_t* packed;
  int8_t* codes;
  std::atomic<bool> valid;
};

bool unpack_unit(const UnpackJob& job, int64_t component, int64_t unit) {
  const Geometry& g = job.g;
  if (g.format == BITIMPL_TWO_BIT)
    return unpack_group<BITIMPL_TWO_BIT>(g, component, unit, job.packed, job.codes);
  if (g.format == BITIMPL_BASE3)
    return unpack_group<BITIMPL_BASE3>(g, component, unit, job.packed, job.codes);
  const int64_t row = component * g.rows + unit;
  unpack_binary_row(job.packed + row * g.row_bytes, g.cols, job.codes + row * g.cols);
  return true;
}

void unpack_range(void* context, int, int64_t begin, int64_t end) {
  UnpackJob& job = *static_cast<UnpackJob*>(context);
  bool valid = true;
  for (int64_t unit = begin; unit < end; ++unit)
    for (int64_t c = 0; c < job.g.components; ++c) valid &= unpack_unit(job, c, unit);
  if (!valid) job.valid = false;
}

}  // namespace
}  // namespace bitimpl

using namespace bitimpl;

extern "C" {

int bitimpl_pack(int32_t format, int32_t components, int64_t rows, int64_t cols,
                 int64_t group_size, const int8_t* codes, uint8_t* out, int64_t out_bytes) {
  clear_error();
  bitimpl_weight packed;
  const int status = describe_packed(format, components, rows, cols, group_size, codes, out, out_bytes, &packed);
  if (status != BITIMPL_OK) return status;
  PackJob job = {geometry_of(packed), codes, out, {true}};
  parallel_ranges(units_of(job.g), 1, work_of(job.g), available_threads(), pack_range, &job);
  return job.valid ? BITIMPL_OK : report_bad_code(job.g, codes);
}

int bitimpl_unpack(const bitimpl_weight* weight, int8_t* codes) {
  clear_error();
  int status = check_weight(weight, false);
  if (status == BITIMPL_OK) status = check_codes(codes);
  if (status != BITIMPL_OK) return status;
  UnpackJob job = {geometry_of(*weight), weight->codes, codes, {true}};
  parallel_ranges(units_of(job.g), 1, work_of(job.g), available_threads(), unpack_range, &job);
  if (job.valid) return BITIMPL_OK;
  return fail(BITIMPL_INVALID_ARGUMENT,
              "the packed bytes hold a digit above 2, which no %s weight has: "
              "they are damaged or of another format; pack the weight again",
              format_name(weight->format));
}

}  // extern "C"
