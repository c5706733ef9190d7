// The convolution cases of the sanitizer driver: x, y and workspace are blocks of exactly the
// bytes that their strides reach and bitimpl_conv_workspace asks for.
#include <memory>
#include <sstream>

#include "sanitize_support.h"

namespace {

struct ConvCase {
  int32_t format, components;
  int64_t rows, channels, groups;
  int32_t activation;
  int64_t samples;
  int64_t size[3], kernel[3], stride[3], dilation[3], before[3], after[3];
  int32_t padding_value, x_dtype, y_dtype, bias_dtype, x_layout, y_layout;
};

bool parse(const std::string& line, ConvCase& c) {
  std::istringstream in(line.substr(5));
  in >> c.format >> c.components >> c.rows >> c.channels >> c.groups >> c.activation >> c.samples;
  for (int64_t* triple : {c.size, c.kernel, c.stride, c.dilation, c.before, c.after})
    for (int d = 0; d < 3; ++d) in >> triple[d];
  in >> c.padding_value >> c.x_dtype >> c.y_dtype >> c.bias_dtype >> c.x_layout >> c.y_layout;
  return !in.fail();
}

// An image and its memory. Layout 0: channels before positions; 1: channels last; 2: as 0, but
// with a gap after every row, plane and channel.
struct Pixels {
  bitimpl_image image = {};
  Block memory;

  Pixels(int64_t samples, int64_t channels, const int64_t* size, int32_t dtype, int32_t layout,
         const char* name)
      : memory(describe(samples, channels, size, dtype, layout), name) {
    image.data = memory.data();
  }

 private:
  int64_t describe(int64_t samples, int64_t channels, const int64_t* size, int32_t dtype,
                   int32_t layout) {
    image.dtype = dtype;
    image.samples = samples;
    image.channels = channels;
    const int64_t gap = layout == 2 ? 3 : 0;
    int64_t stride = layout == 1 ? channels : 1;
    for (int d = 2; d >= 0; --d) {
      image.size[d] = size[d];
      image.spatial_stride[d] = stride;
      stride = stride * size[d] + gap;
    }
    image.channel_stride = layout == 1 ? 1 : stride;
    image.sample_stride = layout == 1 ? stride : stride * channels;
    int64_t last = (samples - 1) * image.sample_stride + (channels - 1) * image.channel_stride;
    for (int d = 0; d < 3; ++d) last += (size[d] - 1) * image.spatial_stride[d];
    return samples == 0 ? 0 : (last + 1) * size_of(dtype);
  }
};

}  // namespace

void run_conv_case(const std::string& line, const std::vector<std::string>& isas) {
  ConvCase c;
  if (!parse(line, c)) stop(line, "cannot read the case");
  Random random;
  const int64_t cols = c.channels / c.groups * c.kernel[0] * c.kernel[1] * c.kernel[2];
  announce(line, "packing");
  Block codes(c.components * c.rows * cols, "codes");
  for (size_t i = 0; i < codes.bytes; ++i) {
    const uint32_t r = random.next();
    codes.data()[i] = static_cast<uint8_t>(c.format == BITIMPL_BINARY ? 1 - 2 * int(r & 1) : int(r % 3) - 1);
  }
  codes.seal();
  Block scales(c.components * c.rows * 4, "scales");
  fill(scales, BITIMPL_F32, random);
  Block packed(bitimpl_codes_bytes(c.format, c.components, c.rows, cols, 0), "packed codes");
  if (bitimpl_pack(c.format, c.components, c.rows, cols, 0,
                   reinterpret_cast<const int8_t*>(codes.data()), packed.data(),
                   static_cast<int64_t>(packed.bytes)) != BITIMPL_OK)
    stop(line, "pack failed");
  packed.seal();
  bitimpl_weight w = {};
  w.layout = BITIMPL_LAYOUT_V1;
  w.format = c.format;
  w.components = c.components;
  w.scale_dtype = BITIMPL_F32;
  w.rows = c.rows;
  w.cols = cols;
  w.codes = packed.data();
  w.codes_bytes = static_cast<int64_t>(packed.bytes);
  w.scales = scales.data();
  w.scale_component_stride = c.rows;
  w.scale_row_stride = 1;
  bitimpl_conv conv = {};
  conv.groups = c.groups;
  conv.padding_value = c.padding_value;
  int64_t out[3];
  for (int d = 0; d < 3; ++d) {
    conv.kernel[d] = c.kernel[d];
    conv.stride[d] = c.stride[d];
    conv.dilation[d] = c.dilation[d];
    conv.padding_before[d] = c.before[d];
    conv.padding_after[d] = c.after[d];
    const int64_t free = c.size[d] + c.before[d] + c.after[d] - c.dilation[d] * (c.kernel[d] - 1) - 1;
    out[d] = free / c.stride[d] + 1;
  }

  Pixels x(c.samples, c.channels, c.size, c.x_dtype, c.x_layout, "x");
  fill(x.memory, c.x_dtype, random);
  std::unique_ptr<Block> bias;
  if (c.bias_dtype >= 0) {
    bias = std::make_unique<Block>(c.rows * size_of(c.bias_dtype), "bias");
    fill(*bias, c.bias_dtype, random);
  }
  std::unique_ptr<Pixels> first;
  for (const std::string& isa : isas) {
    if (bitimpl_select_isa(isa.c_str()) != BITIMPL_OK) stop(line, "cannot select the ISA");
    announce(line, isa);
    auto y = std::make_unique<Pixels>(c.samples, c.rows, out, c.y_dtype, c.y_layout, "y");
    const int64_t bytes = bitimpl_conv_workspace(&w, &conv, &x.image, c.activation);
    if (bytes < 0) stop(line, "no workspace size");
    Block workspace(bytes, "workspace");
    const auto op = c.format == BITIMPL_BINARY ? bitimpl_binary_conv : bitimpl_ternary_conv;
    if (op(&w, &conv, &x.image, c.activation, bias == nullptr ? nullptr : bias->data(),
           bias == nullptr ? 0 : c.bias_dtype, &y->image, workspace.data(), bytes) != BITIMPL_OK)
      stop(line, "the operator failed");
    check_conv_signs(line, w, conv, x.image, y->image, c.activation,
                     bias == nullptr ? nullptr : bias->data(), bias == nullptr ? 0 : c.bias_dtype);
    if (first == nullptr) {
      first = std::move(y);
    } else if (std::memcmp(first->memory.data(), y->memory.data(), y->memory.bytes) != 0) {
      stop(line, ("results of " + isa + " and " + isas.front() + " differ").c_str());
    }
  }
}
