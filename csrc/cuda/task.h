// What the kernels are given: plain data, passed by value.
#ifndef BITIMPL_CUDA_TASK_H
#define BITIMPL_CUDA_TASK_H

#include <stdint.h>

#include "../include/impl_cuda.h"

namespace bitimpl {
namespace cuda {

constexpr int kStep = 64;        // columns of a step
constexpr int kBlockGroups = 4;  // row groups of a full row block

// A packed weight (impl.h, layout V1). Of BINARY, whose rows lie one by one, per_byte and groups mean nothing.
struct Weight {
  const uint8_t* codes;
  const void* scales;
  int32_t format;
  int32_t components;
  int32_t scale_dtype;  // BITIMPL_F32 or BITIMPL_F16
  int32_t per_byte;     // rows of a row group: 4 or 5
  int64_t rows;
  int64_t cols;
  int64_t groups;   // row groups: ceil(rows / per_byte)
  int64_t segment;  // columns that share a scale
  int32_t segments;
  int32_t segment_steps;  // steps of a segment that is not the last: ceil(segment / 64)
  int32_t steps;          // of all segments
  int64_t scale_component_stride;
  int64_t scale_row_stride;
  int64_t scale_group_stride;
};

// Quantised activations. A token's columns lie as the weight's steps do: step s at byte 64 s of its row, the
// rest of a step shorter than 64 zero. So every step begins on 64 bytes, whatever the segments are, and what a
// kernel reads of the codes beyond a short step counts for nothing.
struct Tokens {
  int32_t planes;  // 2 (INT16: x ~ 256 q[0] + q[1]), else 1
  int64_t rows;
  int64_t row_bytes;  // 64 * steps
  int32_t tile;       // 0; else so many rows lie together, step by step, as wgmma_layout.h says
  bool prepared;      // q, scale and sums are there: there is no source to read
  const int8_t* q[2];
  const float* scale;      // [rows], NaN where the row is not finite
  const int32_t* sums[2];  // of the plane's q, [rows, segments]
};

// Activations as the caller has them.
struct Source {
  const void* x;
  int64_t row_stride;
  int32_t dtype;       // BITIMPL_SIGNS: signs, row_stride in bits
  int32_t activation;  // bitimpl_activation
  const float* scale = nullptr;  // [rows], of signs
};

struct Result {
  void* y;
  const void* bias;  // null: none
  int64_t row_stride;
  int32_t dtype;
  int32_t bias_dtype;
};

struct LinearTask {
  Weight weight;
  Source source;
  Tokens x;  // without memory where the kernel reads the source itself
  Result result;
};

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_TASK_H
