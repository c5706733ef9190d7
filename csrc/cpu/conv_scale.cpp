// Scales of signs and ternary values, sample by sample: from what was summed over its pieces, in their order.
#include <stdint.h>

#include "conv.h"
#include "quantize.h"

namespace bitimpl {
namespace {

int64_t pieces_of_sample(const ConvPlan& plan) { return plan.lines.count * plan.lines.pieces; }

template <class Value>
Value sum_of(const char* base, int64_t offset, const ConvPlan& plan, int64_t sample) {
  const int64_t pieces = pieces_of_sample(plan);
  const Value* partials = reinterpret_cast<const Value*>(base + offset) + sample * pieces;
  Value sum = 0;
  for (int64_t i = 0; i < pieces; ++i) sum += partials[i];
  return sum;
}

double values_of_sample(const ConvPlan& plan) {
  return static_cast<double>(plan.channels) * static_cast<double>(plan.pixels);
}

}  // namespace

void scale_signs(const ConvPlan& plan, const ConvLayout& layout, char* base, int64_t sample) {
  reinterpret_cast<float*>(base + layout.scale)[sample] =
      mean_magnitude(sum_of<double>(base, layout.partials, plan, sample), values_of_sample(plan));
}

void set_threshold(const ConvPlan& plan, const ConvLayout& layout, char* base, int64_t sample) {
  reinterpret_cast<float*>(base + layout.factor)[sample] =
      ternary_threshold(sum_of<double>(base, layout.partials, plan, sample), values_of_sample(plan));
}

void scale_ternary(const ConvPlan& plan, const ConvLayout& layout, char* base, int64_t sample) {
  const float threshold = reinterpret_cast<const float*>(base + layout.factor)[sample];
  const double sum = sum_of<double>(base, layout.partials, plan, sample);
  const int64_t kept = sum_of<int64_t>(base, layout.counts, plan, sample);
  reinterpret_cast<float*>(base + layout.scale)[sample] = ternary_scale(threshold, sum, kept);
}

}  // namespace bitimpl
