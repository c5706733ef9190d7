// Signs as a convolution takes them from the one before and hands them on to the next: bits, the channels
// of a position together. The first layout is that of the image of bits in the workspace, so that taking
// signs is copying them; it is a copy because gathering reads a little past the end.
#include <stdint.h>
#include <string.h>

#include "conv.h"
#include "epilogue.h"
#include "parallel.h"

namespace bitimpl {
namespace {

struct TakenSigns {
  const KernelTable& kernels;
  const ConvPlan& plan;
  const bitimpl_image& x;
  char* image;

  // The channels of a position.
  void take(const uint8_t* from, char* to) const {
    if (!plan.bits) {
      kernels.spread_bits(from, nullptr, plan.channels, reinterpret_cast<int8_t*>(to));
      return;
    }
    if (whole()) {
      memcpy(to, from, static_cast<size_t>(plan.pixel_bytes));
      return;
    }
    for (int64_t g = 0; g < plan.groups; ++g) {
      copy_bits(reinterpret_cast<uint8_t*>(to) + g * plan.group_bytes, 0, from, g * plan.group_channels,
                plan.group_channels);
    }
  }

  // Whether a position in the image has the bits of one in x.
  bool whole() const { return plan.bits && (plan.groups == 1 || plan.group_channels % 8 == 0); }

  // Positions along the width.
  void take_line(const uint8_t* from, char* to) const {
    const int64_t step = x.spatial_stride[2] / 8;
    if (whole() && step == plan.pixel_bytes) {
      memcpy(to, from, static_cast<size_t>(plan.size[2] * plan.pixel_bytes));
      return;
    }
    for (int64_t i = 0; i < plan.size[2]; ++i) take(from + i * step, to + i * plan.pixel_bytes);
  }
};

// Range over the lines along the width of all samples.
void take_range(void* context, int, int64_t begin, int64_t end) {
  const TakenSigns& s = *static_cast<const TakenSigns*>(context);
  const ConvPlan& plan = s.plan;
  const int64_t lines = plan.size[0] * plan.size[1];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t sample = i / lines;
    const int64_t line = i % lines;
    const int64_t at = sample * s.x.sample_stride + line / plan.size[1] * s.x.spatial_stride[0] +
                       line % plan.size[1] * s.x.spatial_stride[1];
    s.take_line(static_cast<const uint8_t*>(s.x.data) + at / 8,
                s.image + sample * plan.sample_bytes + line * plan.size[2] * plan.pixel_bytes);
  }
}

}  // namespace

void take_signs(const KernelTable& kernels, const ConvPlan& plan, const bitimpl_image& x,
                const float* x_scale, const ConvLayout& layout, char* base, int threads) {
  TakenSigns signs = {kernels, plan, x, base + layout.image[0]};
  // A byte copied, or spread, costs about as much as a multiply-accumulate.
  const double work = static_cast<double>(plan.samples) * static_cast<double>(plan.sample_bytes);
  parallel_ranges(plan.samples * plan.size[0] * plan.size[1], 1, work, threads, take_range, &signs);
  for (int64_t s = 0; s < plan.samples; ++s) {
    reinterpret_cast<float*>(base + layout.scale)[s] = x_scale[s];
    base[layout.border[0] + s] = static_cast<char>(plan.padding_value);
  }
}

void begin_signs(const bitimpl_image& y, float* scale) {
  for (int64_t s = 0; s < y.samples; ++s) scale[s] = 1.0f;
  if (y.channels % 8 == 0) return;
  uint8_t* last = static_cast<uint8_t*>(y.data) + y.channels / 8;
  const int64_t* step = y.spatial_stride;
  for (int64_t s = 0; s < y.samples; ++s) {
    for (int64_t d = 0; d < y.size[0]; ++d) {
      for (int64_t h = 0; h < y.size[1]; ++h) {
        for (int64_t w = 0; w < y.size[2]; ++w) {
          last[(s * y.sample_stride + d * step[0] + h * step[1] + w * step[2]) / 8] = 0;
        }
      }
    }
  }
}

void copy_bits(uint8_t* to, int64_t to_at, const uint8_t* from, int64_t from_at, int64_t count) {
  constexpr int64_t kWhole = 56;  // bits that 8 bytes hold wherever in a byte they begin
  while (count > 0) {
    const int64_t n = count < kWhole ? count : kWhole;
    const int64_t shift = from_at % 8;
    uint64_t word = 0;
    memcpy(&word, from + from_at / 8, static_cast<size_t>((shift + n + 7) / 8));
    store_bits(to, to_at, n, word >> shift);
    to_at += n;
    from_at += n;
    count -= n;
  }
}

}  // namespace bitimpl
