// Gathering: the activations that a tile of output positions sees, one matrix row a position, taps
// outermost as in the weight. A tap's channels lie together in the image, and where taps are
// neighbours without groups so do all taps along the width: each is one copy.
#include <stdint.h>
#include <string.h>

#include "conv.h"
#include "conv_walk.h"

namespace bitimpl {
namespace {

constexpr int64_t kStride = 16;  // bytes copied at once: up to 15 past the end, within kSlack
constexpr int64_t kLongCopy = 256;
static_assert(kStride <= kSlack, "a copy stays within the slack of image and rows");

// Up to 15 bytes past the end are read and written; what lies there is written afterwards. The
// usual piece is short: calling memcpy would cost more than copying.
inline void copy(char* to, const char* from, int64_t bytes) {
  if (bytes >= kLongCopy) {
    memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  for (int64_t i = 0; i < bytes; i += kStride) memcpy(to + i, from + i, kStride);
}

inline void fill(char* to, char value, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kStride) memset(to + i, value, kStride);
}

// Rows of whole bytes: int8 planes, and signs where the channels of a group fill bytes.
struct Bytes {
  const char* image;  // the group's bytes of pixel 0 of the sample
  char* to;
  int64_t tap_bytes;
  int64_t pixel_bytes;
  int64_t step;  // bytes between taps
  bool joined;   // successive taps follow each other
  char border_value;

  void border(int64_t taps) {
    fill(to, border_value, taps * tap_bytes);
    to += taps * tap_bytes;
  }

  void pixels(int64_t pixel, int64_t taps) {
    const char* from = image + pixel * pixel_bytes;
    if (joined) {
      copy(to, from, taps * tap_bytes);
      to += taps * tap_bytes;
      return;
    }
    for (int64_t i = 0; i < taps; ++i, from += step, to += tap_bytes) copy(to, from, tap_bytes);
  }

  void finish(char* end) { fill(to, 0, end - to); }
};

// Rows of signs whose taps end within a byte.
struct Bits {
  const char* image;
  char* to;
  int64_t channels;
  int64_t pixel_bytes;
  int64_t step;
  uint64_t border_bits;
  uint64_t pending = 0;
  int64_t held = 0;  // bits of `pending`, less than 64

  void append(uint64_t bits, int64_t count) {
    if (count < 64) bits &= (uint64_t{1} << count) - 1;
    pending |= bits << held;
    if (held + count < 64) {
      held += count;
      return;
    }
    memcpy(to, &pending, sizeof pending);
    to += sizeof pending;
    pending = held == 0 ? 0 : bits >> (64 - held);
    held = held + count - 64;
  }

  void border(int64_t taps) {
    for (int64_t left = taps * channels; left > 0; left -= 64) {
      append(border_bits, left < 64 ? left : 64);
    }
  }

  void pixels(int64_t pixel, int64_t taps) {
    const char* from = image + pixel * pixel_bytes;
    for (int64_t i = 0; i < taps; ++i, from += step) {
      for (int64_t k = 0; k < channels; k += 64) {
        uint64_t bits;
        memcpy(&bits, from + k / 8, sizeof bits);
        append(bits, channels - k < 64 ? channels - k : 64);
      }
    }
  }

  void finish(char* end) {
    if (held > 0) {
      memcpy(to, &pending, sizeof pending);
      to += sizeof pending;
    }
    fill(to, 0, end - to);
  }
};

void find_taps(const ConvPlan& plan, int d, Window& window) {
  const int64_t origin = window.place[d] * plan.stride[d] - plan.before[d];
  const int64_t reach = (plan.kernel[d] - 1) * plan.dilation[d];
  window.origin[d] = origin;
  window.first[d] = 0;
  window.last[d] = plan.kernel[d];
  if (origin >= 0 && origin + reach < plan.size[d]) return;
  if (origin < 0) window.first[d] = (-origin + plan.dilation[d] - 1) / plan.dilation[d];
  if (window.first[d] > plan.kernel[d]) window.first[d] = plan.kernel[d];
  const int64_t before_end = plan.size[d] - 1 - origin;
  const int64_t last = before_end < 0 ? 0 : before_end / plan.dilation[d] + 1;
  if (last < plan.kernel[d]) window.last[d] = last;
  if (window.last[d] < window.first[d]) window.last[d] = window.first[d];
}

bool sees_every_tap(const ConvPlan& plan, const Window& window) {
  bool all = true;
  for (int d = 0; d < 3; ++d) all = all && window.last[d] - window.first[d] == plan.kernel[d];
  return all;
}

}  // namespace

void find_windows(const ConvPlan& plan, int64_t token, int64_t count, Window* windows) {
  Window window = {};
  window.sample = token / plan.out_pixels;
  int64_t rest = token % plan.out_pixels;
  for (int d = 2; d >= 0; --d) {
    window.place[d] = rest % plan.out[d];
    rest /= plan.out[d];
  }
  for (int d = 0; d < 3; ++d) find_taps(plan, d, window);
  for (int64_t i = 0; i < count; ++i) {
    window.inside = sees_every_tap(plan, window);
    windows[i] = window;
    for (int d = 2; d >= 0; --d) {
      const bool carry = ++window.place[d] == plan.out[d];
      if (carry) window.place[d] = 0;
      find_taps(plan, d, window);
      if (!carry) break;
      if (d == 0) ++window.sample;
    }
  }
}

void gather(const KernelTable& kernels, const ConvPlan& plan, const ConvLayout& layout,
            const char* base, char* scratch, int64_t group, const Window* windows, int64_t count) {
  const bool sign = plan.activation == BITIMPL_ACTIVATION_SIGN;
  const int64_t step = plan.dilation[2] * plan.pixel_bytes;
  for (int plane = 0; plane < (sign ? 1 : plan.planes); ++plane) {
    char* to = scratch + layout.rows[plane];
    const char* image = base + layout.image[plane] + group * plan.group_bytes;
    int32_t* sums = reinterpret_cast<int32_t*>(scratch + layout.sums[plane]);
    for (int64_t i = 0; i < count; ++i, to += layout.row_stride) {
      const Window& window = windows[i];
      const char* from = image + window.sample * plan.sample_bytes;
      if (sign && plan.group_channels % 8 != 0) {
        const uint64_t border = plan.padding_value > 0 ? ~uint64_t{0} : 0;
        Bits bits = {from, to, plan.group_channels, plan.pixel_bytes, step, border};
        walk(plan, window, bits);
        bits.finish(to + layout.row_stride);
        continue;
      }
      char border = plan.padding_value > 0 ? static_cast<char>(0xff) : 0;
      if (!sign) border = base[layout.border[plane] + window.sample];
      Bytes bytes = {from, to, plan.group_bytes, plan.pixel_bytes, step, step == plan.group_bytes, border};
      walk(plan, window, bytes);
      bytes.finish(to + layout.row_stride);
      if (!sign) sums[i] = kernels.sum_int8(reinterpret_cast<int8_t*>(to), (plan.cols + 63) / 64 * 64);
    }
  }
}

}  // namespace bitimpl
