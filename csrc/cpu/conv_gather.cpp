// Gathering: the activations that a tile of output positions sees, one matrix row a position, taps
// outermost as in the weight. A tap's channels lie together in the image, and where taps are
// neighbours without groups so do all taps along the width: each is one copy.
#include <stdint.h>
#include <string.h>

#include "conv.h"
#include "conv_walk.h"

namespace bitimpl {
namespace {

constexpr int64_t kStride = kOverrun;  // bytes copied at once
constexpr int64_t kLongCopy = 256;
static_assert(kOverrun <= kSlack, "a copy stays within the slack of image and rows");

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

  // What is left; the words after it were cleared (clear_tails) and nothing writes to them.
  void finish() {
    if (held > 0) memcpy(to, &pending, sizeof pending);
  }
};

// Copies `bytes` bytes for each of `count` tokens, and up to 15 more.
void copy_each(char* to, int64_t to_step, const char* from, int64_t from_step, int64_t bytes,
               int64_t count) {
  if (bytes <= kStride) {
    for (int64_t i = 0; i < count; ++i) memcpy(to + i * to_step, from + i * from_step, kStride);
  } else if (bytes <= 2 * kStride) {
    for (int64_t i = 0; i < count; ++i) memcpy(to + i * to_step, from + i * from_step, 2 * kStride);
  } else {
    for (int64_t i = 0; i < count; ++i) copy(to + i * to_step, from + i * from_step, bytes);
  }
}

// Rows of whole bytes, for tokens [begin, end) of a run, which see every tap of the width: line by
// line of taps, all tokens at a time.
void gather_inside(const ConvPlan& plan, const Run& run, int64_t begin, int64_t end, Bytes bytes,
                   int64_t row_stride) {
  const int64_t first = find_taps(plan, 2, run.place[2] + begin).origin * bytes.pixel_bytes;
  const int64_t token_step = plan.stride[2] * bytes.pixel_bytes;
  const int64_t taps = plan.kernel[2];
  const int64_t line_bytes = taps * bytes.tap_bytes;
  const int64_t count = end - begin;
  each_line(
      plan, run,
      [&] {
        for (int64_t i = 0; i < count; ++i) fill(bytes.to + i * row_stride, bytes.border_value, line_bytes);
        bytes.to += line_bytes;
      },
      [&](int64_t line) {
        const char* from = bytes.image + line * bytes.pixel_bytes + first;
        const int64_t pieces = bytes.joined ? 1 : taps;
        const int64_t piece_bytes = line_bytes / pieces;
        for (int64_t i = 0; i < pieces; ++i, from += bytes.step, bytes.to += piece_bytes) {
          copy_each(bytes.to, row_stride, from, token_step, piece_bytes, count);
        }
      });
  for (int64_t i = 0; i < count; ++i) memset(bytes.to + i * row_stride, 0, kStride);
}

// Rows of whole bytes of all tokens of a run, the first one at bytes.to.
void gather_bytes(const ConvPlan& plan, const Run& run, const Bytes& bytes, int64_t row_stride) {
  for (int64_t i = 0; i < run.count; ++i) {
    if (i == run.inside_begin && i < run.inside_end) {
      i = run.inside_end;
      if (i == run.count) break;
    }
    Bytes row = bytes;
    row.to += i * row_stride;
    walk(plan, run, i, row);
    memset(row.to, 0, kStride);
  }
  if (run.inside_begin == run.inside_end) return;
  Bytes rows = bytes;
  rows.to += run.inside_begin * row_stride;
  gather_inside(plan, run, run.inside_begin, run.inside_end, rows, row_stride);
}

void gather_bits(const ConvPlan& plan, const Run& run, const Bits& bits, int64_t row_stride) {
  for (int64_t i = 0; i < run.count; ++i) {
    Bits row = bits;
    row.to += i * row_stride;
    walk(plan, run, i, row);
    row.finish();
  }
}

}  // namespace

int64_t find_runs(const ConvPlan& plan, int64_t token, int64_t count, Run* runs) {
  // Places along the width whose windows fall inside: [inside, inside_end).
  const int64_t inside = (plan.before[2] + plan.stride[2] - 1) / plan.stride[2];
  const int64_t room = plan.size[2] - 1 - (plan.kernel[2] - 1) * plan.dilation[2] + plan.before[2];
  const int64_t inside_end = room < 0 ? 0 : room / plan.stride[2] + 1;
  const auto within = [](int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
  };
  int64_t found = 0;
  for (int64_t done = 0; done < count; ++found) {
    Run& run = runs[found];
    run.token = done;
    int64_t rest = token + done;
    for (int d = 2; d >= 0; --d) {
      run.place[d] = rest % plan.out[d];
      rest /= plan.out[d];
    }
    run.sample = rest;
    run.count = within(plan.out[2] - run.place[2], 0, count - done);
    run.depth = find_taps(plan, 0, run.place[0]);
    run.height = find_taps(plan, 1, run.place[1]);
    run.whole = run.depth.last - run.depth.first == plan.kernel[0] &&
                run.height.last - run.height.first == plan.kernel[1];
    run.inside_begin = within(inside - run.place[2], 0, run.count);
    run.inside_end = within(inside_end - run.place[2], run.inside_begin, run.count);
    done += run.count;
  }
  return found;
}

void clear_tails(const ConvPlan& plan, const ConvLayout& layout, char* scratch) {
  const bool sign = plan.bits;
  const int64_t used = sign ? (plan.cols + 7) / 8 : plan.cols;
  for (int plane = 0; plane < (sign ? 1 : plan.planes); ++plane) {
    char* row = scratch + layout.rows[plane];
    for (int64_t i = 0; i < plan.tile_tokens; ++i, row += layout.row_stride) {
      memset(row + used, 0, static_cast<size_t>(layout.row_stride - used));
    }
  }
}

void gather(const KernelTable& kernels, const ConvPlan& plan, const ConvLayout& layout,
            const char* base, char* scratch, int64_t group, const Run* runs, int64_t count) {
  const bool sign = plan.bits;
  const int64_t step = plan.dilation[2] * plan.pixel_bytes;
  for (int plane = 0; plane < (sign ? 1 : plan.planes); ++plane) {
    const char* image = base + layout.image[plane] + group * plan.group_bytes;
    for (int64_t i = 0; i < count; ++i) {
      const Run& run = runs[i];
      const char* from = image + run.sample * plan.sample_bytes;
      char* to = scratch + layout.rows[plane] + run.token * layout.row_stride;
      if (sign && plan.group_channels % 8 != 0) {
        const uint64_t border = plan.padding_value > 0 ? ~uint64_t{0} : 0;
        gather_bits(plan, run, {from, to, plan.group_channels, plan.pixel_bytes, step, border},
                    layout.row_stride);
        continue;
      }
      char border = plan.padding_value > 0 ? static_cast<char>(0xff) : 0;
      if (!sign) border = base[layout.border[plane] + run.sample];
      gather_bytes(plan, run,
                   {from, to, plan.group_bytes, plan.pixel_bytes, step, step == plan.group_bytes, border},
                   layout.row_stride);
    }
    if (sign) continue;
    const Run& last = runs[count - 1];
    kernels.sum_int8(reinterpret_cast<const int8_t*>(scratch + layout.rows[plane]), layout.row_stride,
                     (plan.cols + 63) / 64 * 64, last.token + last.count,
                     reinterpret_cast<int32_t*>(scratch + layout.sums[plane]));
  }
}

}  // namespace bitimpl
