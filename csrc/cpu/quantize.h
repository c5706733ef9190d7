// Activation preparation: any bitimpl_matrix of activations to the form kernels read, in
// caller-owned workspace. Shared by every operator.
#ifndef BITIMPL_CPU_QUANTIZE_H
#define BITIMPL_CPU_QUANTIZE_H

#include <stdint.h>

#include "kernels.h"

namespace bitimpl {

// Magnitudes of float32 values as bits: this much or more is an infinity or NaN.
constexpr uint32_t kInfinityBits = 0x7f800000u;

constexpr float kInt8Limit = 127.0f;
constexpr float kInt16Limit = 32512.0f;  // 127 * 256

// The factor that maps values of at most this magnitude to [-limit, limit]; *scale undoes it. 0 and
// NaN where the magnitude is not finite.
float quantisation_factor(uint32_t magnitude_bits, float limit, float* scale);

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Strides that kernels.h asks of prepared activations of `cols` columns: bytes of an int8 row (an odd
// number of 64-byte lines, so that rows start in different cache sets), 64-bit words of a row of signs.
constexpr int64_t q_stride_of(int64_t cols) {
  const int64_t stride = round_up(cols, 64) + 64;
  return stride / 64 % 2 == 0 ? stride + 64 : stride;
}
constexpr int64_t sign_stride_of(int64_t cols) { return round_up(cols, 512) / 64; }

// Where everything of one operator call lies in its workspace; offsets in bytes from a 64-byte
// aligned base. A pure function of sizes: the workspace query and the call agree by construction.
struct WorkspaceLayout {
  int64_t values;   // FLOAT: float32 copy of x, used unless x is float32 already
  int64_t q[2];     // int8 planes
  int64_t sums[2];  // segment sums of each plane
  int64_t signs;
  int64_t scale;    // activation scales
  int64_t bias;     // float32 copy of the bias, used unless it is float32 already
  int64_t scratch;  // scratch_stride bytes for each thread
  int64_t scratch_stride;

  int64_t q_stride;     // bytes
  int64_t sign_stride;  // words
};

// `kernel_scratch`: bytes one thread of the kernel needs.
WorkspaceLayout lay_out_workspace(int64_t tokens, int64_t rows, int64_t cols, int64_t segments,
                                  int32_t activation, int64_t kernel_scratch);

// Converts and quantises x (checked by the caller) into `base` as `layout` says and describes the
// result in *out. `threads` scratch slices are available.
void prepare_activations(const KernelTable& kernels, const bitimpl_matrix& x, int32_t activation,
                         int64_t segment, int64_t segments, const WorkspaceLayout& layout,
                         char* base, int threads, Activations* out);

}  // namespace bitimpl

#endif  // BITIMPL_CPU_QUANTIZE_H
