#include "conv_checks.h"

#include "checks.h"

namespace bitimpl {
namespace {

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

}  // namespace

int check_conv(const bitimpl_weight& weight, const bitimpl_conv* conv, const bitimpl_image* x, int32_t activation,
               ConvSizes* sizes) {
  int status = check_geometry(conv);
  if (status == BITIMPL_OK) status = check_image(x, "x");
  if (status == BITIMPL_OK) status = check_sizes(weight, *conv, *x);
  if (status != BITIMPL_OK) return status;
  if (activation == BITIMPL_ACTIVATION_FLOAT) {
    return fail(BITIMPL_UNSUPPORTED,
                "convolutions take sign, ternary, int8 or int16 activations: for float ones decode the weight "
                "with bitimpl_dequantize");
  }
  *sizes = {1, 1, {}, 0, false};
  double out_pixels = 1.0;
  for (int d = 0; d < 3; ++d) {
    const int64_t padded = x->size[d] + conv->padding_before[d] + conv->padding_after[d];
    sizes->out[d] = (padded - conv->dilation[d] * (conv->kernel[d] - 1) - 1) / conv->stride[d] + 1;
    sizes->pads = sizes->pads || conv->padding_before[d] > 0 || conv->padding_after[d] > 0;
    sizes->pixels *= x->size[d];
    sizes->taps *= conv->kernel[d];
    out_pixels *= static_cast<double>(sizes->out[d]);
  }
  const double results = out_pixels * static_cast<double>(x->samples) * static_cast<double>(weight.rows);
  const double tap_sums = static_cast<double>(weight.components) * static_cast<double>(sizes->taps) *
                          static_cast<double>(weight.rows);
  if (results * 4.0 > kMaxWorkspace || out_pixels > kMaxWorkspace || tap_sums * 4.0 > kMaxWorkspace) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "y would have %.3g elements, more than can be addressed: use a smaller batch or less "
                "padding",
                results);
  }
  sizes->out_pixels = sizes->out[0] * sizes->out[1] * sizes->out[2];
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

int check_conv_output(const bitimpl_weight& weight, const bitimpl_image& x, const ConvSizes& sizes,
                      const bitimpl_image* y) {
  const int status = check_image(y, "y");
  if (status != BITIMPL_OK) return status;
  if (y->samples != x.samples || y->channels != weight.rows || y->size[0] != sizes.out[0] ||
      y->size[1] != sizes.out[1] || y->size[2] != sizes.out[2]) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "y is %lld x %lld x %lld x %lld x %lld: make it %lld x %lld x %lld x %lld x %lld",
                show(y->samples), show(y->channels), show(y->size[0]), show(y->size[1]),
                show(y->size[2]), show(x.samples), show(weight.rows), show(sizes.out[0]),
                show(sizes.out[1]), show(sizes.out[2]));
  }
  if (overlaps(*y)) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "the strides of y put two elements in one place: pass a tensor of its own memory");
  }
  return BITIMPL_OK;
}

}  // namespace bitimpl
