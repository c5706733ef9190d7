// Depthwise convolutions: each channel is a conv group of its own. A matrix of gathered activations
// would have rows of a few bytes and be multiplied by one row of weights; instead each tap is read from
// the image where it lies, all channels at a time (conv_depthwise.h). The image holds bytes for every kind
// of activation, and a row of bytes stands in for all positions outside of it: there is no border to
// correct.
#include <stdint.h>
#include <string.h>

#include "conv.h"
#include "conv_walk.h"
#include "epilogue.h"

namespace bitimpl {
namespace {

// A sink of walk(): where the taps of a token are found.
struct Places {
  const ConvPlan& plan;
  const int8_t* image;   // channel of pixel 0 of the sample
  const int8_t* outside;
  int64_t token_step;
  const int8_t** at;
  int64_t* step;

  void border(int64_t taps) {
    for (int64_t i = 0; i < taps; ++i) {
      *at++ = outside;
      *step++ = 0;
    }
  }

  void pixels(int64_t pixel, int64_t taps) {
    for (int64_t i = 0; i < taps; ++i, pixel += plan.dilation[2]) {
      *at++ = image + pixel * plan.pixel_bytes;
      *step++ = token_step;
    }
  }
};

}  // namespace

void spread_weights(const ConvPlan& plan, const ConvLayout& layout, const LinearTask& task, char* base) {
  const int8_t* unpacked = reinterpret_cast<const int8_t*>(base + layout.unpacked);
  int16_t* codes = reinterpret_cast<int16_t*>(base + layout.tap_codes);
  float* scales = reinterpret_cast<float*>(base + layout.tap_scales);
  const int64_t stride = depthwise_stride_of(plan.rows);
  for (int64_t c = 0; c < task.components; ++c) {
    for (int64_t tap = 0; tap < plan.taps; ++tap, codes += stride) {
      const int8_t* from = unpacked + c * plan.rows * plan.taps + tap;
      for (int64_t r = 0; r < plan.rows; ++r) codes[r] = from[r * plan.taps];
      memset(codes + plan.rows, 0, static_cast<size_t>(stride - plan.rows) * sizeof *codes);
    }
    for (int64_t r = 0; r < stride; ++r) *scales++ = r < plan.rows ? scale_at(task, c, r, 0) : 0.0f;
  }
}

void run_depthwise(const KernelTable& kernels, const ConvPlan& plan, const ConvLayout& layout,
                   const char* base, char* scratch, const Run* runs, int64_t count,
                   const LinearTask& task, int64_t row) {
  const int8_t** at = reinterpret_cast<const int8_t**>(scratch + layout.taps_at);
  int64_t* step = reinterpret_cast<int64_t*>(scratch + layout.taps_step);
  const DepthwiseTaps taps = {plan.taps, {at, at + plan.taps}, step};
  const DepthwiseWeights weights = {
      reinterpret_cast<const int16_t*>(base + layout.tap_codes) + row,
      reinterpret_cast<const float*>(base + layout.tap_scales) + row, depthwise_stride_of(plan.rows)};
  int8_t outside[2][kDepthwiseRows];
  for (int64_t i = 0; i < count; ++i) {
    const Run& run = runs[i];
    for (int p = 0; p < plan.planes; ++p) {
      memset(outside[p], base[layout.border[p] + run.sample], sizeof outside[p]);
    }
    for (int64_t t = 0; t < run.count;) {
      const bool inside = t >= run.inside_begin && t < run.inside_end;
      const int64_t tokens = inside ? run.inside_end - t : 1;
      for (int p = 0; p < plan.planes; ++p) {
        const char* image = base + layout.image[p] + run.sample * plan.sample_bytes + row;
        Places places = {plan, reinterpret_cast<const int8_t*>(image), outside[p],
                         plan.stride[2] * plan.pixel_bytes, at + p * plan.taps, step};
        walk(plan, run, t, places);
      }
      kernels.depthwise(task, taps, weights, run.token + t, tokens);
      t += tokens;
    }
  }
}

}  // namespace bitimpl
