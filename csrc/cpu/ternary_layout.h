// Where the bytes of a ternary row block lie (impl.h, layout V1), and the tables of its digits.
// Internal linkage: included by files of every instruction set.
#ifndef BITIMPL_CPU_TERNARY_LAYOUT_H
#define BITIMPL_CPU_TERNARY_LAYOUT_H

#include <stdint.h>
#include <string.h>

#include "kernels.h"

namespace bitimpl {
namespace {

constexpr int kStep = 64;        // columns of a step
constexpr int kBlockGroups = 4;  // row groups of a full block

// The n <= 64 bytes of a step, copied where a vector would read past them.
struct WholeStep {
  alignas(32) uint8_t copy[kStep];
  const uint8_t* bytes;

  WholeStep(const uint8_t* from, int64_t n) : bytes(from) {
    if (n == kStep) return;
    memset(copy, 0, sizeof copy);
    memcpy(copy, from, static_cast<size_t>(n));
    bytes = copy;
  }
};

template <bool BASE3>
struct Format {
  static constexpr int kRows = BASE3 ? 5 : 4;  // rows sharing a byte
  static constexpr int kBlockRows = kRows * kBlockGroups;
};

// One row block: `groups` row groups, `rows` of their rows exist.
struct Block {
  const uint8_t* codes;  // component 0, column 0
  int64_t first_row;
  int64_t rows;
  int64_t groups;
};

template <bool BASE3>
[[maybe_unused]] inline Block block_at(const LinearTask& task, int64_t index) {
  constexpr int64_t kRows = Format<BASE3>::kRows;
  Block block;
  block.first_row = index * Format<BASE3>::kBlockRows;
  const int64_t left = task.rows - block.first_row;
  block.rows = left < Format<BASE3>::kBlockRows ? left : Format<BASE3>::kBlockRows;
  block.groups = (block.rows + kRows - 1) / kRows;
  block.codes = task.codes + index * kBlockGroups * task.components * task.cols;
  return block;
}

[[maybe_unused]] inline int64_t segment_columns(const LinearTask& task, int64_t segment) {
  const int64_t left = task.cols - segment * task.segment;
  return left < task.segment ? left : task.segment;
}

[[maybe_unused]] inline const uint8_t* segment_codes(const LinearTask& task, const Block& block,
                                                     int64_t component, int64_t segment) {
  return block.codes + (component * task.cols + segment * task.segment) * block.groups;
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_TERNARY_LAYOUT_H
