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

// mean |x| from the sum over `count` values: the scale of signs. NaN where one of them is not finite.
float mean_magnitude(double sum, double count);
// What magnitudes must exceed not to become a ternary 0: 0.75 mean |x|; NaN, which nothing exceeds, where
// one of them is not finite.
float ternary_threshold(double sum, double count);
// The scale of ternary values: the mean magnitude of those that are not 0, from their sum; 0 where there
// are none. NaN where the threshold is.
float ternary_scale(float threshold, double kept_sum, int64_t kept);

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
  int64_t nonzero;
  int64_t counts;   // ones of `nonzero` in each segment
  int64_t scale;    // activation scales
  int64_t bias;     // float32 copy of the bias, used unless it is float32 already
  int64_t scratch;  // scratch_stride bytes for each thread
  int64_t scratch_stride;

  int64_t q_stride;     // bytes
  int64_t sign_stride;  // words
};

// For a task whose x says its kind, rows and planes. `kernel_scratch`: bytes one thread of the kernel
// needs.
WorkspaceLayout lay_out_workspace(const LinearTask& task, int64_t kernel_scratch);

// Converts and quantises x (checked by the caller) into `base` as `layout` says and fills task->x, whose
// kind, rows and planes are set. `threads` scratch slices are available. x_scale: of x of signs.
void prepare_activations(const KernelTable& kernels, const bitimpl_matrix& x, const float* x_scale,
                         const WorkspaceLayout& layout, char* base, int threads, LinearTask* task);

}  // namespace bitimpl

#endif  // BITIMPL_CPU_QUANTIZE_H
