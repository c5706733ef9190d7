// Runs operator calls through every instruction set of this machine, so that a read or write one byte
// outside of a buffer is caught: in a build with the address and undefined-behaviour sanitizers, or
// without them and with the argument "behind" or "front", which puts every buffer between guard pages
// (block.h). A second argument is the number of threads that there must be.
//
// Each line of standard input is one case, the fields of Case in kernel_cases.py in order
// (convolutions: sanitize_conv.cpp). Every buffer is of exactly the size that impl.h asks for.
//
// What is computed is checked elsewhere; here the instruction sets must agree, and packing must
// round-trip.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "impl.h"
#include "sanitize_support.h"

namespace {

struct Case {
  int32_t format, components;
  int64_t rows, cols, group_size;
  int32_t activation;
  int64_t tokens;
  int32_t x_dtype, y_dtype;
  int64_t x_padding, y_padding;
  int32_t bias_dtype, scale_dtype, per_tensor, extreme;
};

bool parse(const std::string& line, Case& c) {
  std::istringstream in(line);
  in >> c.format >> c.components >> c.rows >> c.cols >> c.group_size >> c.activation >> c.tokens >>
      c.x_dtype >> c.y_dtype >> c.x_padding >> c.y_padding >> c.bias_dtype >> c.scale_dtype >>
      c.per_tensor >> c.extreme;
  return !in.fail();
}

int64_t strided_bytes(int64_t rows, int64_t cols, int64_t padding, int32_t dtype) {
  return rows == 0 ? 0 : ((rows - 1) * (cols + padding) + cols) * size_of(dtype);
}

void check_packing(const std::string& line, const bitimpl_weight& w, const Block& codes) {
  Block again(static_cast<int64_t>(codes.bytes), "unpacked codes");
  if (bitimpl_unpack(&w, reinterpret_cast<int8_t*>(again.data())) != BITIMPL_OK)
    stop(line, "unpack failed");
  if (std::memcmp(again.data(), codes.data(), codes.bytes) != 0)
    stop(line, "unpack does not invert pack");
  // All rows, and the last ones at a distance from each other.
  const int64_t first = w.rows / 3, stride = w.cols + 3;
  const Block all(w.rows * w.cols * 4, "dequantized rows");
  const Block part(((w.rows - first - 1) * stride + w.cols) * 4, "some dequantized rows");
  const auto floats = [](const Block& block) { return reinterpret_cast<float*>(block.data()); };
  if (bitimpl_dequantize(&w, 0, w.rows, floats(all), w.cols) != BITIMPL_OK ||
      bitimpl_dequantize(&w, first, w.rows, floats(part), stride) != BITIMPL_OK)
    stop(line, "dequantize failed");
  for (int64_t row = first; row < w.rows; ++row) {
    if (std::memcmp(floats(part) + (row - first) * stride, floats(all) + row * w.cols,
                    static_cast<size_t>(w.cols) * 4) != 0)
      stop(line, "dequantize depends on the range of rows");
  }
}

void check_reading(const std::string& line, const Block& block) {
  uint64_t expected = 0;
  for (size_t i = 0; i < block.bytes; ++i) expected ^= uint64_t{block.data()[i]} << 8 * (i % 8);
  if (bitimpl_read(block.data(), static_cast<int64_t>(block.bytes)) != expected)
    stop(line, "bitimpl_read misses a byte");
}

// Quantised rows of x, and behind them their scales.
std::vector<uint8_t> quantise(const std::string& line, const bitimpl_matrix& x) {
  const Block q(x.rows * x.cols, "q"), scale(x.rows * 4, "scale of q");
  if (bitimpl_quantize_int8(&x, reinterpret_cast<int8_t*>(q.data()),
                            reinterpret_cast<float*>(scale.data())) != BITIMPL_OK)
    stop(line, "quantize_int8 failed");
  std::vector<uint8_t> both(q.data(), q.data() + q.bytes);
  both.insert(both.end(), scale.data(), scale.data() + scale.bytes);
  return both;
}

// The strides of scales [components, rows, groups], and what they span: contiguous, rows innermost,
// or with gaps.
int64_t lay_out_scales(const Case& c, int64_t groups, uint32_t layout, bitimpl_weight& w) {
  const int64_t rows = c.per_tensor ? 1 : c.rows;
  w.scale_group_stride = layout == 1 ? rows : layout == 2 ? 2 : 1;
  const int64_t row_stride = layout == 1 ? 1 : layout == 2 ? 2 * groups + 1 : groups;
  w.scale_row_stride = c.per_tensor ? 0 : row_stride;
  w.scale_component_stride = rows * groups + (layout == 2 ? rows * (groups + 1) : 0);
  return (c.components - 1) * w.scale_component_stride + (rows - 1) * w.scale_row_stride +
         (groups - 1) * w.scale_group_stride + 1;
}

Block run(const std::string& line, const Case& c, const bitimpl_weight& w, const bitimpl_matrix& from,
          Block* bias) {
  Block y(strided_bytes(c.tokens, c.rows, c.y_padding, c.y_dtype), "y");
  const bitimpl_matrix to = {y.data(), c.y_dtype, 0, c.tokens, c.rows, c.rows + c.y_padding};
  const int64_t bytes = bitimpl_linear_workspace(&w, c.tokens, c.activation);
  if (bytes < 0) stop(line, "no workspace size");
  Block workspace(bytes, "workspace");
  const auto op = c.format == BITIMPL_BINARY ? bitimpl_binary_linear : bitimpl_ternary_linear;
  const int status = op(&w, &from, c.activation, bias == nullptr ? nullptr : bias->data(),
                        bias == nullptr ? 0 : c.bias_dtype, &to, workspace.data(), bytes);
  if (status != BITIMPL_OK) stop(line, "the operator failed");
  return y;
}

void run_case(const std::string& line, const Case& c, const std::vector<std::string>& isas) {
  Random random;
  announce(line, "packing");
  Block codes(c.components * c.rows * c.cols, "codes");
  for (size_t i = 0; i < codes.bytes; ++i) {
    const uint32_t r = random.next();
    const int code = c.extreme ? 1 : c.format == BITIMPL_BINARY ? 1 - 2 * int(r & 1) : int(r % 3) - 1;
    codes.data()[i] = static_cast<uint8_t>(code);
  }
  codes.seal();
  bitimpl_weight w = {};
  const int64_t groups = c.group_size > 0 ? (c.cols + c.group_size - 1) / c.group_size : 1;
  const int64_t span = lay_out_scales(c, groups, random.next() % 3, w);
  Block scales(span * size_of(c.scale_dtype), "scales");
  fill(scales, c.scale_dtype, random);
  const int64_t bytes =
      bitimpl_codes_bytes(c.format, c.components, c.rows, c.cols, c.group_size);
  if (bytes < 0) stop(line, "no such packed weight");
  Block packed(bytes, "packed codes");
  if (bitimpl_pack(c.format, c.components, c.rows, c.cols, c.group_size,
                   reinterpret_cast<const int8_t*>(codes.data()), packed.data(),
                   static_cast<int64_t>(packed.bytes)) != BITIMPL_OK)
    stop(line, "pack failed");
  packed.seal();

  w.layout = BITIMPL_LAYOUT_V1;
  w.format = c.format;
  w.components = c.components;
  w.scale_dtype = c.scale_dtype;
  w.rows = c.rows;
  w.cols = c.cols;
  w.group_size = c.group_size;
  w.codes = packed.data();
  w.codes_bytes = static_cast<int64_t>(packed.bytes);
  w.scales = scales.data();
  check_packing(line, w, codes);
  check_reading(line, packed);

  Block x(strided_bytes(c.tokens, c.cols, c.x_padding, c.x_dtype), "x");
  if (c.extreme) random.fixed = 2;  // 1.5 everywhere: the largest activation, K times
  fill(x, c.x_dtype, random);
  random.fixed = 0;
  const bitimpl_matrix from = {x.data(), c.x_dtype, 0, c.tokens, c.cols, c.cols + c.x_padding};
  std::unique_ptr<Block> bias;
  if (c.bias_dtype >= 0) {
    bias = std::make_unique<Block>(c.rows * size_of(c.bias_dtype), "bias");
    fill(*bias, c.bias_dtype, random);
  }
  std::unique_ptr<Block> first;
  std::vector<uint8_t> quantised;
  for (const std::string& isa : isas) {
    if (bitimpl_select_isa(isa.c_str()) != BITIMPL_OK) stop(line, "cannot select the ISA");
    announce(line, isa);
    Block y = run(line, c, w, from, bias.get());
    check_linear_signs(line, w, from, c.activation, bias == nullptr ? nullptr : bias->data(),
                       bias == nullptr ? 0 : c.bias_dtype);
    std::vector<uint8_t> q = quantise(line, from);
    if (first == nullptr) {
      quantised = q;
      first = std::make_unique<Block>(std::move(y));
    } else if (c.activation != BITIMPL_ACTIVATION_FLOAT &&
               std::memcmp(first->data(), y.data(), y.bytes) != 0) {
      stop(line, ("results of " + isa + " and " + isas.front() + " differ").c_str());
    }
    if (q != quantised) stop(line, ("rows that " + isa + " quantises differ").c_str());
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string where = count > 1 ? arguments[1] : "heap";
  if (where != "heap" && where != "behind" && where != "front") {
    std::fprintf(stderr, "\"%s\": say heap, behind or front\n", where.c_str());
    return 2;
  }
  if (count > 2 && bitimpl_threads() != std::atoi(arguments[2])) {
    std::fprintf(stderr, "%d threads, not %s\n", bitimpl_threads(), arguments[2]);
    return 2;
  }
  if (where != "heap") use_guard_pages(where == "behind" ? Placement::kBehind : Placement::kInFront);
  std::vector<std::string> isas;
  std::istringstream names(bitimpl_supported_isas());
  for (std::string name; std::getline(names, name, ',');) isas.push_back(name);
  long cases = 0;
  Case c;
  for (std::string line; std::getline(std::cin, line); ++cases) {
    if (line.rfind("conv ", 0) == 0) {
      run_conv_case(line, isas);
      continue;
    }
    if (line.rfind("probe ", 0) == 0) {
      run_probe(line);
      continue;
    }
    if (!parse(line, c)) stop(line, "cannot read the case");
    run_case(line, c, isas);
  }
  std::printf("%ld cases on %s\n", cases, bitimpl_supported_isas());
  return 0;
}
