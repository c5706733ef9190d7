// A weight's descriptor as the kernels want it.
#ifndef BITIMPL_CUDA_WEIGHT_H
#define BITIMPL_CUDA_WEIGHT_H

#include "../common/checks.h"
#include "task.h"

namespace bitimpl {
namespace cuda {

// That there are kernels that multiply weights of this format.
inline int check_format(int32_t format) {
  if (format != BITIMPL_BINARY) return BITIMPL_OK;
  return fail(BITIMPL_UNSUPPORTED, "there is no CUDA kernel for binary weights: use the torch reference "
              "(BITIMPL_BACKEND=torch)");
}

// Of a weight that has been checked. per_byte, groups and steps mean nothing for BINARY.
inline Weight describe(const bitimpl_weight& w) {
  Weight weight = {};
  weight.codes = w.codes;
  weight.scales = w.scales;
  weight.format = w.format;
  weight.components = w.components;
  weight.scale_dtype = w.scale_dtype;
  weight.per_byte = w.format == BITIMPL_BASE3 ? 5 : 4;
  weight.rows = w.rows;
  weight.cols = w.cols;
  weight.groups = (w.rows + weight.per_byte - 1) / weight.per_byte;
  weight.segment = segment_of(w);
  weight.segments = static_cast<int32_t>((w.cols + weight.segment - 1) / weight.segment);
  weight.segment_steps = static_cast<int32_t>((weight.segment + kStep - 1) / kStep);
  const int64_t last = w.cols - (weight.segments - 1) * weight.segment;
  weight.steps =
      (weight.segments - 1) * weight.segment_steps + static_cast<int32_t>((last + kStep - 1) / kStep);
  weight.scale_component_stride = w.scale_component_stride;
  weight.scale_row_stride = w.scale_row_stride;
  weight.scale_group_stride = w.scale_group_stride;
  return weight;
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_WEIGHT_H
