// The order in which a window sees the taps of the kernel.
#ifndef BITIMPL_CPU_CONV_WALK_H
#define BITIMPL_CPU_CONV_WALK_H

#include <stdint.h>

#include "conv.h"

namespace bitimpl {
namespace {

// Calls, for all taps in the order of the weight's columns,
//   sink.border(taps)         for taps outside of the image
//   sink.pixels(pixel, taps)  for taps along the width, the first one at `pixel`
template <class Sink>
inline void walk(const ConvPlan& plan, const Window& window, Sink& sink) {
  const int64_t width = plan.kernel[2];
  for (int64_t d = 0; d < plan.kernel[0]; ++d) {
    const bool plane = d >= window.first[0] && d < window.last[0];
    const int64_t z = window.origin[0] + d * plan.dilation[0];
    for (int64_t h = 0; h < plan.kernel[1]; ++h) {
      if (!plane || h < window.first[1] || h >= window.last[1] || window.first[2] == window.last[2]) {
        sink.border(width);
        continue;
      }
      const int64_t y = window.origin[1] + h * plan.dilation[1];
      const int64_t x = window.origin[2] + window.first[2] * plan.dilation[2];
      if (window.first[2] > 0) sink.border(window.first[2]);
      sink.pixels((z * plan.size[1] + y) * plan.size[2] + x, window.last[2] - window.first[2]);
      if (window.last[2] < width) sink.border(width - window.last[2]);
    }
  }
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_CONV_WALK_H
