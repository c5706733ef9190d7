#include <stdint.h>

#include "../common/checks.h"
#include "conv.h"
#include "quantize.h"

namespace bitimpl {
namespace {

constexpr int64_t kTileBytes = 192 << 10;  // gathered activations of a tile: part of an L2 cache
constexpr int64_t kFewTokens = 16;         // what the kernels work on at once
constexpr int64_t kBitChannels = 16;       // fewer are gathered faster as bytes than as bits
constexpr double kMaxOffset = 1e18;        // of an element

const char* const kDimensions[3] = {"depth", "height", "width"};

// The samples, channels and positions of an image as one list of sizes and strides.
struct Axes {
  int64_t size[5];
  int64_t stride[5];

  explicit Axes(const bitimpl_image& image)
      : size{image.samples, image.channels, image.size[0], image.size[1], image.size[2]},
        stride{image.sample_stride, image.channel_stride, image.spatial_stride[0],
               image.spatial_stride[1], image.spatial_stride[2]} {}
};

int check_image(const bitimpl_image* image, const char* name) {
  if (image == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "%s is null: pass an image", name);
  }
  const bool signs = image->dtype == BITIMPL_SIGNS;
  if (bytes_of_dtype(image->dtype) == 0 && !signs) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%s has dtype %d: use %d (float32), %d (float16) or %d (bfloat16)", name,
                image->dtype, BITIMPL_F32, BITIMPL_F16, BITIMPL_BF16);
  }
  const Axes axes(*image);
  double elements = 1.0;
  double offset = 0.0;
  for (int i = 0; i < 5; ++i) {
    const int64_t least = i == 0 ? 0 : 1;
    if (axes.size[i] < least || axes.size[i] > kMaxDimension) {
      return fail(BITIMPL_INVALID_ARGUMENT,
                  "%s is %lld x %lld x %lld x %lld x %lld (samples, channels, depth, height, width): "
                  "samples must be 0 to %lld, the others 1 to %lld",
                  name, show(axes.size[0]), show(axes.size[1]), show(axes.size[2]),
                  show(axes.size[3]), show(axes.size[4]), show(kMaxDimension), show(kMaxDimension));
    }
    if (axes.size[i] > 1 && axes.stride[i] < 0) {
      return fail(BITIMPL_INVALID_ARGUMENT, "%s has a stride of %lld: strides must be at least 0",
                  name, show(axes.stride[i]));
    }
    const bool fits = i == 1 ? axes.stride[i] == 1 : axes.stride[i] % 8 == 0;
    if (signs && axes.size[i] > 1 && !fits) {
      return fail(BITIMPL_INVALID_ARGUMENT,
                  "%s of signs has a stride of %lld bits: use 1 for channels, multiples of 8 for the rest",
                  name, show(axes.stride[i]));
    }
    elements *= static_cast<double>(axes.size[i]);
    if (axes.size[i] > 1) {
      offset += static_cast<double>(axes.size[i] - 1) * static_cast<double>(axes.stride[i]);
    }
  }
  if (elements * 4.0 > kMaxWorkspace || offset > kMaxOffset) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%s has %.3g elements that lie up to %.3g apart: use a smaller batch", name, elements,
                offset);
  }
  return BITIMPL_OK;
}

// Each axis, from the smallest stride on, must step over everything before it.
bool overlaps(const bitimpl_image& image) {
  Axes axes(image);
  int64_t extent = 1;
  for (int done = 0; done < 5; ++done) {
    int next = -1;
    for (int i = 0; i < 5; ++i) {
      if (axes.size[i] > 1 && (next < 0 || axes.stride[i] < axes.stride[next])) next = i;
    }
    if (next < 0) return false;
    if (axes.stride[next] < extent) return true;
    extent += (axes.size[next] - 1) * axes.stride[next];
    axes.size[next] = 1;
  }
  return false;
}

int check_geometry(const bitimpl_conv* conv) {
  if (conv == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "conv is null: pass a geometry");
  }
  const auto in_range = [](int64_t value, int64_t least) {
    return value >= least && value <= kMaxDimension;
  };
  for (int d = 0; d < 3; ++d) {
    if (!in_range(conv->kernel[d], 1) || !in_range(conv->stride[d], 1) ||
        !in_range(conv->dilation[d], 1) || !in_range(conv->padding_before[d], 0) ||
        !in_range(conv->padding_after[d], 0)) {
      return fail(BITIMPL_INVALID_ARGUMENT,
                  "kernel %lld, stride %lld, dilation %lld, padding %lld and %lld in %s: padding must "
                  "be 0 to %lld, the others 1 to %lld",
                  show(conv->kernel[d]), show(conv->stride[d]), show(conv->dilation[d]),
                  show(conv->padding_before[d]), show(conv->padding_after[d]), kDimensions[d],
                  show(kMaxDimension), show(kMaxDimension));
    }
  }
  if (conv->padding_value < -1 || conv->padding_value > 1) {
    return fail(BITIMPL_INVALID_ARGUMENT, "padding_value is %d: use -1, 0 or +1",
                conv->padding_value);
  }
  if (!in_range(conv->groups, 1)) {
    return fail(BITIMPL_INVALID_ARGUMENT, "groups is %lld: use at least 1", show(conv->groups));
  }
  return BITIMPL_OK;
}

int check_sizes(const bitimpl_weight& w, const bitimpl_conv& conv, const bitimpl_image& x) {
  if (w.group_size > 0 && w.group_size < w.cols) {
    return fail(BITIMPL_UNSUPPORTED,
                "group_size is %lld: convolutions take scales per tensor or row, use group_size 0",
                show(w.group_size));
  }
  if (x.channels % conv.groups != 0 || w.rows % conv.groups != 0) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%lld channels of x and %lld rows of the weight in %lld groups: groups must divide both",
                show(x.channels), show(w.rows), show(conv.groups));
  }
  const double taps = static_cast<double>(conv.kernel[0]) * static_cast<double>(conv.kernel[1]) *
                      static_cast<double>(conv.kernel[2]);
  const int64_t channels = x.channels / conv.groups;
  if (taps * static_cast<double>(channels) != static_cast<double>(w.cols)) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "the weight has %lld columns, a kernel of %lld x %lld x %lld over %lld channels of a "
                "group takes %.0f: they must agree",
                show(w.cols), show(conv.kernel[0]), show(conv.kernel[1]), show(conv.kernel[2]),
                show(channels), taps * static_cast<double>(channels));
  }
  for (int d = 0; d < 3; ++d) {
    const int64_t padded = x.size[d] + conv.padding_before[d] + conv.padding_after[d];
    const int64_t reach = conv.dilation[d] * (conv.kernel[d] - 1) + 1;
    if (padded < reach) {
      return fail(BITIMPL_INVALID_ARGUMENT,
                  "the padded input is %lld long in %s, the dilated kernel %lld: use a larger input, "
                  "more padding or a smaller kernel",
                  show(padded), kDimensions[d], show(reach));
    }
  }
  return BITIMPL_OK;
}

Lines lines_of(const bitimpl_image& x) {
  Lines joined = {1, 1, 0, 0};
  bool joins = true;
  for (int d = 2; d >= 0; --d) {
    if (x.size[d] == 1) continue;
    if (joined.length == 1) joined.stride = x.spatial_stride[d];
    else joins = joins && x.spatial_stride[d] == joined.length * joined.stride;
    joined.length *= x.size[d];
  }
  Lines lines = joins ? joined : Lines{x.size[0] * x.size[1], x.size[2], x.spatial_stride[2], 0};
  lines.pieces = (lines.length + kPiecePixels - 1) / kPiecePixels;
  return lines;
}

}  // namespace

int plan_conv(const bitimpl_weight& weight, const bitimpl_conv* conv, const bitimpl_image* x,
              int32_t activation, ConvPlan* plan) {
  int status = check_geometry(conv);
  if (status == BITIMPL_OK) status = check_image(x, "x");
  if (status == BITIMPL_OK) status = check_sizes(weight, *conv, *x);
  if (status != BITIMPL_OK) return status;
  if (activation == BITIMPL_ACTIVATION_FLOAT) {
    return fail(BITIMPL_UNSUPPORTED,
                "convolutions take sign, ternary, int8 or int16 activations: for float ones decode the weight "
                "with bitimpl_dequantize");
  }

  ConvPlan& p = *plan;
  p = {};
  p.activation = activation;
  p.groups = conv->groups;
  p.group_channels = x->channels / p.groups;
  p.group_rows = weight.rows / p.groups;
  p.depthwise = p.groups > 1 && p.group_channels == 1 && p.group_rows == 1;
  if (p.depthwise) {
    p.groups = 1;
    p.group_channels = p.group_rows = weight.rows;
  }
  p.bits = !p.depthwise && activation == BITIMPL_ACTIVATION_SIGN &&
           weight.format == BITIMPL_BINARY && p.group_channels >= kBitChannels;
  p.planes = p.bits ? 0 : activation == BITIMPL_ACTIVATION_INT16 ? 2 : 1;
  p.padding_value = conv->padding_value;
  p.samples = x->samples;
  p.channels = x->channels;
  p.pixels = p.taps = p.out_pixels = 1;
  double out_pixels = 1.0;
  for (int d = 0; d < 3; ++d) {
    p.size[d] = x->size[d];
    p.kernel[d] = conv->kernel[d];
    p.stride[d] = conv->stride[d];
    p.dilation[d] = conv->dilation[d];
    p.before[d] = conv->padding_before[d];
    p.pads = p.pads || conv->padding_before[d] > 0 || conv->padding_after[d] > 0;
    const int64_t padded = x->size[d] + conv->padding_before[d] + conv->padding_after[d];
    p.out[d] = (padded - conv->dilation[d] * (conv->kernel[d] - 1) - 1) / conv->stride[d] + 1;
    out_pixels *= static_cast<double>(p.out[d]);
    p.pixels *= p.size[d];
    p.taps *= p.kernel[d];
  }
  p.corrects = p.bits && p.pads && p.padding_value == 0;
  p.rows = weight.rows;
  p.cols = weight.cols;
  const double results = out_pixels * static_cast<double>(p.samples) * static_cast<double>(p.rows);
  const double tap_sums = static_cast<double>(weight.components) * static_cast<double>(p.taps) *
                          static_cast<double>(p.rows);
  if (results * 4.0 > kMaxWorkspace || out_pixels > kMaxWorkspace || tap_sums * 4.0 > kMaxWorkspace) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "y would have %.3g elements, more than can be addressed: use a smaller batch or less "
                "padding",
                results);
  }
  p.out_pixels = p.out[0] * p.out[1] * p.out[2];
  p.tokens = p.samples * p.out_pixels;
  p.group_bytes = p.bits ? (p.group_channels + 7) / 8 : p.group_channels;
  p.pixel_bytes = p.groups * p.group_bytes;
  p.sample_bytes = p.pixels * p.pixel_bytes;
  p.lines = lines_of(*x);

  const int64_t row_bytes = (p.planes > 0 ? p.planes : 1) * (p.planes > 0 ? p.cols : (p.cols + 7) / 8);
  int64_t tokens = kTileBytes / row_bytes / kFewTokens * kFewTokens;
  if (tokens < kFewTokens) tokens = kFewTokens;
  if (tokens > kMaxTileTokens) tokens = kMaxTileTokens;
  p.tile_tokens = tokens < p.tokens ? tokens : (p.tokens > 0 ? p.tokens : 1);
  return BITIMPL_OK;
}

int check_image_data(const bitimpl_image& image, const char* name) {
  const int64_t bytes = image.dtype == BITIMPL_SIGNS ? 1 : bytes_of_dtype(image.dtype);
  if (image.samples > 0 && (image.data == nullptr || !aligned(image.data, bytes))) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%s lies at %p: pass data aligned to its elements of %lld bytes", name, image.data,
                show(bytes));
  }
  return BITIMPL_OK;
}

int check_output(const ConvPlan& plan, const bitimpl_image* y) {
  const int status = check_image(y, "y");
  if (status != BITIMPL_OK) return status;
  if (y->samples != plan.samples || y->channels != plan.rows || y->size[0] != plan.out[0] ||
      y->size[1] != plan.out[1] || y->size[2] != plan.out[2]) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "y is %lld x %lld x %lld x %lld x %lld: make it %lld x %lld x %lld x %lld x %lld",
                show(y->samples), show(y->channels), show(y->size[0]), show(y->size[1]),
                show(y->size[2]), show(plan.samples), show(plan.rows), show(plan.out[0]),
                show(plan.out[1]), show(plan.out[2]));
  }
  if (overlaps(*y)) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "the strides of y put two elements in one place: pass a tensor of its own memory");
  }
  return BITIMPL_OK;
}

Activations form_of(const ConvPlan& plan, int64_t rows) {
  Activations x = {};
  x.kind = plan.activation;
  x.planes = plan.planes;
  x.bit_planes = plan.bits;
  x.rows = rows;
  return x;
}

ConvLayout lay_out_conv(const KernelTable& kernels, const ConvPlan& p, const LinearTask& task) {
  ConvLayout at = {};
  int64_t used = 0;
  const auto take = [&used](int64_t bytes) {
    const int64_t begin = used;
    used = round_up(used + bytes, 64);
    return begin;
  };
  const int planes = p.bits ? 1 : p.planes;
  for (int i = 0; i < planes; ++i) at.image[i] = take(p.samples * p.sample_bytes + kSlack);
  const int64_t pieces = p.samples * p.lines.count * p.lines.pieces;
  at.partials = take(pieces * 8);
  at.counts = take(p.activation == BITIMPL_ACTIVATION_TERNARY ? pieces * 8 : 0);
  at.scale = take(p.samples * 4);
  at.factor = take(p.samples * 4);
  for (int i = 0; i < planes; ++i) at.border[i] = take(p.samples);
  at.tap_sums = take(p.corrects ? task.components * p.taps * p.rows * 4 : 0);
  const int64_t weights = p.depthwise ? task.components * p.taps * depthwise_stride_of(p.rows) : 0;
  at.unpacked = take(p.depthwise ? task.components * p.taps * p.rows : 0);
  at.tap_codes = take(weights * 2);
  at.tap_scales = take(weights / p.taps * 4);
  at.bias = take(p.rows * 4);
  at.scratch = used;

  used = 0;
  // A copy writes past the end of a row, but not into the next one.
  at.row_stride = p.bits ? 8 * sign_stride_of(p.cols + 8 * kOverrun) : q_stride_of(p.cols);
  at.runs = take(p.tile_tokens * static_cast<int64_t>(sizeof(Run)));
  at.places = take(p.tile_tokens * 8);
  for (int i = 0; i < planes && !p.depthwise; ++i) {
    at.rows[i] = take(p.tile_tokens * at.row_stride + kSlack);
    at.sums[i] = take(p.planes > 0 ? p.tile_tokens * 4 : 0);
  }
  at.token_scale = take(p.tile_tokens * 4);
  at.marks = take(p.tile_tokens * 4);
  at.results = take(p.tile_tokens * kChunkRows * 4);
  at.outside = take(p.corrects ? p.tile_tokens * task.components * kChunkRows * 4 : 0);
  at.outside_at = take(p.corrects ? p.tile_tokens * 8 : 0);
  at.taps_at = take(p.depthwise ? 2 * p.taps * 8 : 0);
  at.taps_step = take(p.depthwise ? p.taps * 8 : 0);
  LinearTask part = task;
  part.x = form_of(p, p.tile_tokens);
  const ScratchQuery query =
      task.format == BITIMPL_BINARY ? kernels.binary_scratch : kernels.ternary_scratch;
  at.kernel_scratch = take(p.depthwise ? 0 : query(part));
  at.scratch_stride = used;
  return at;
}

}  // namespace bitimpl
