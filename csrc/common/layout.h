// The packed layouts of impl.h as code: sizes, where the bytes of a row group lie, digits. Used by
// the checks, for sizes, and on the CPU by the files that convert (pack.cpp, dequantize.cpp); the kernels walk
// the bytes their own way.
#ifndef BITIMPL_COMMON_LAYOUT_H
#define BITIMPL_COMMON_LAYOUT_H

#include <stdint.h>

#include "../include/impl.h"

namespace bitimpl {
namespace {

constexpr int64_t kStep = 64;        // columns of one step
constexpr int64_t kBlockGroups = 4;  // row groups of one row block
// What packing or unpacking one weight costs, in the multiply-accumulates parallel.h counts.
constexpr double kWorkPerWeight = 16.0;

[[maybe_unused]] inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Geometry {
  int32_t format;
  int64_t components, rows, cols;
  int64_t segment;    // columns of one segment: group_size, or all of them
  int64_t row_bytes;  // binary: bytes of one row
  int64_t per_byte;   // two_bit, base3: rows sharing a byte
  int64_t groups;     // two_bit, base3: row groups
};

[[maybe_unused]] inline Geometry geometry_of(int32_t format, int64_t components, int64_t rows,
                                             int64_t cols, int64_t group_size) {
  Geometry g;
  g.format = format;
  g.components = components;
  g.rows = rows;
  g.cols = cols;
  g.segment = group_size > 0 && group_size < cols ? group_size : cols;
  g.row_bytes = (cols + 7) / 8;
  g.per_byte = format == BITIMPL_BASE3 ? 5 : 4;
  g.groups = (rows + g.per_byte - 1) / g.per_byte;
  return g;
}

[[maybe_unused]] inline Geometry geometry_of(const bitimpl_weight& w) {
  return geometry_of(w.format, w.components, w.rows, w.cols, w.group_size);
}

// Where the bytes of row group `group` lie, one step at a time.
struct Steps {
  const Geometry& g;
  int64_t block_groups;  // groups in this group's block
  int64_t component_begin;
  int64_t index;  // of the group inside its block

  Steps(const Geometry& geometry, int64_t component, int64_t group) : g(geometry) {
    const int64_t block = group / kBlockGroups * kBlockGroups;
    block_groups = least(kBlockGroups, g.groups - block);
    component_begin = (block * g.components + component * block_groups) * g.cols;
    index = group - block;
  }

  // f(first column, columns, segment, offset of the first byte)
  template <class F>
  void each(F f) const {
    for (int64_t begin = 0, segment = 0; begin < g.cols; begin += g.segment, ++segment) {
      const int64_t end = least(begin + g.segment, g.cols);
      for (int64_t k = begin; k < end; k += kStep) {
        const int64_t n = least(kStep, end - k);
        f(k, n, segment, component_begin + k * block_groups + index * n);
      }
    }
  }
};

// floor(b / 3^J) for a byte b, as one multiplication and one shift in 16 bits.
template <int J>
inline uint32_t base3_quotient(uint32_t b) {
  constexpr uint32_t factor[6] = {1, 171, 57, 19, 203, 0};
  constexpr uint32_t shift[6] = {0, 9, 9, 9, 14, 0};
  return static_cast<uint16_t>(b * factor[J]) >> shift[J];
}

// Digit J (0, 1 or 2) of a byte.
template <int32_t FORMAT, int J>
inline int32_t digit(uint8_t byte) {
  if (FORMAT == BITIMPL_TWO_BIT) return (byte >> (2 * J)) & 3;
  return static_cast<int32_t>(base3_quotient<J>(byte) - 3 * base3_quotient<J + 1>(byte));
}

// Value of one digit unit at place J.
template <int32_t FORMAT, int J>
constexpr uint8_t place() {
  constexpr uint8_t two_bit[5] = {1, 4, 16, 64, 0};
  constexpr uint8_t base3[5] = {1, 3, 9, 27, 81};
  return FORMAT == BITIMPL_TWO_BIT ? two_bit[J] : base3[J];
}

// The place inside a byte as a type, so that its constants fold into the loops.
template <int J>
struct Place {
  static constexpr int index = J;
};

// Calls f(Place<J>) for J = 0 .. count - 1, count <= the rows sharing a byte.
template <int32_t FORMAT, class F>
inline void each_place(int64_t count, F f) {
  if (count > 0) f(Place<0>{});
  if (count > 1) f(Place<1>{});
  if (count > 2) f(Place<2>{});
  if (count > 3) f(Place<3>{});
  if (FORMAT == BITIMPL_BASE3 && count > 4) f(Place<4>{});
}

// Rows (binary) or row groups (two_bit, base3) are what one worker takes at a time.
[[maybe_unused]] inline int64_t units_of(const Geometry& g) { return g.format == BITIMPL_BINARY ? g.rows : g.groups; }

[[maybe_unused]] inline double work_of(const Geometry& g) {
  return kWorkPerWeight * static_cast<double>(g.components) * static_cast<double>(g.rows) *
         static_cast<double>(g.cols);
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_COMMON_LAYOUT_H
