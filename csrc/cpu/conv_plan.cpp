#include <stdint.h>

#include "conv.h"
#include "quantize.h"

namespace bitimpl {
namespace {

constexpr int64_t kTileBytes = 192 << 10;  // gathered activations of a tile: part of an L2 cache
constexpr int64_t kFewTokens = 16;         // what the kernels work on at once
constexpr int64_t kBitChannels = 16;       // fewer are gathered faster as bytes than as bits
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
  ConvSizes sizes;
  const int status = check_conv(weight, conv, x, activation, &sizes);
  if (status != BITIMPL_OK) return status;

  ConvPlan& p = *plan;
  p = {};
  p.sizes = sizes;
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
  for (int d = 0; d < 3; ++d) {
    p.size[d] = x->size[d];
    p.kernel[d] = conv->kernel[d];
    p.stride[d] = conv->stride[d];
    p.dilation[d] = conv->dilation[d];
    p.before[d] = conv->padding_before[d];
    p.out[d] = sizes.out[d];
  }
  p.pixels = sizes.pixels;
  p.taps = sizes.taps;
  p.out_pixels = sizes.out_pixels;
  p.pads = sizes.pads;
  p.corrects = p.bits && p.pads && p.padding_value == 0;
  p.rows = weight.rows;
  p.cols = weight.cols;
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
