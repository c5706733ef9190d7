// The order in which a window sees the taps of the kernel.
#ifndef BITIMPL_CPU_CONV_WALK_H
#define BITIMPL_CPU_CONV_WALK_H

#include <stdint.h>

#include "conv.h"

namespace bitimpl {
namespace {

// Taps along dimension d under the window of the output position `place`.
inline Taps find_taps(const ConvPlan& plan, int d, int64_t place) {
  const int64_t origin = place * plan.stride[d] - plan.before[d];
  const int64_t reach = (plan.kernel[d] - 1) * plan.dilation[d];
  Taps taps = {origin, 0, plan.kernel[d]};
  if (origin >= 0 && origin + reach < plan.size[d]) return taps;
  if (origin < 0) taps.first = (-origin + plan.dilation[d] - 1) / plan.dilation[d];
  if (taps.first > plan.kernel[d]) taps.first = plan.kernel[d];
  const int64_t before_end = plan.size[d] - 1 - origin;
  const int64_t last = before_end < 0 ? 0 : before_end / plan.dilation[d] + 1;
  if (last < plan.kernel[d]) taps.last = last;
  if (taps.last < taps.first) taps.last = taps.first;
  return taps;
}

// Calls, for each line of taps along the width in the order of the weight's columns,
//   outside()      where it falls outside of the image
//   inside(pixel)  where it does not; `pixel` is the first one of its line in the sample
template <class Outside, class Inside>
inline void each_line(const ConvPlan& plan, const Run& run, Outside outside, Inside inside) {
  for (int64_t d = 0; d < plan.kernel[0]; ++d) {
    const bool plane = d >= run.depth.first && d < run.depth.last;
    const int64_t z = run.depth.origin + d * plan.dilation[0];
    for (int64_t h = 0; h < plan.kernel[1]; ++h) {
      const int64_t y = run.height.origin + h * plan.dilation[1];
      if (plane && h >= run.height.first && h < run.height.last) {
        inside((z * plan.size[1] + y) * plan.size[2]);
      } else {
        outside();
      }
    }
  }
}

// Calls, for all taps under the window of token `i` of a run,
//   sink.border(taps)         for taps outside of the image
//   sink.pixels(pixel, taps)  for taps along the width, the first one at `pixel`
template <class Sink>
inline void walk(const ConvPlan& plan, const Run& run, int64_t i, Sink& sink) {
  const int64_t width = plan.kernel[2];
  const Taps taps = find_taps(plan, 2, run.place[2] + i);
  each_line(
      plan, run, [&] { sink.border(width); },
      [&](int64_t line) {
        if (taps.first > 0) sink.border(taps.first);
        if (taps.first < taps.last) {
          sink.pixels(line + taps.origin + taps.first * plan.dilation[2], taps.last - taps.first);
        }
        if (taps.last < width) sink.border(width - taps.last);
      });
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_CONV_WALK_H
