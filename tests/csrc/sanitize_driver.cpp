// Runs operator calls through every instruction set of this machine, in a build with the address
// and undefined-behaviour sanitizers. Each line of standard input is one case, the fields of
// Case in kernel_cases.py in order (convolutions: sanitize_conv.cpp). Every buffer is a heap block of exactly the size that impl.h
// asks for, so that a read or write one byte outside is caught.
//
// What is computed is checked elsewhere; here the instruction sets must agree, and packing must
// round-trip.
#include <cstdint>
#include <cstdio>
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
  Block again(static_cast<int64_t>(codes.bytes));
  if (bitimpl_unpack(&w, reinterpret_cast<int8_t*>(again.data())) != BITIMPL_OK)
    stop(line, "unpack failed");
  if (std::memcmp(again.data(), codes.memory.get(), codes.bytes) != 0)
    stop(line, "unpack does not invert pack");
  const int64_t first = w.rows / 3;
  std::vector<float> all(static_cast<size_t>(w.rows * w.cols));
  std::vector<float> part(static_cast<size_t>((w.rows - first) * w.cols));
  if (bitimpl_dequantize(&w, 0, w.rows, all.data(), w.cols) != BITIMPL_OK ||
      bitimpl_dequantize(&w, first, w.rows, part.data(), w.cols) != BITIMPL_OK)
    stop(line, "dequantize failed");
  if (std::memcmp(part.data(), all.data() + first * w.cols, part.size() * 4) != 0)
    stop(line, "dequantize depends on the range of rows");
}

Block run(const std::string& line, const Case& c, const bitimpl_weight& w, Block& x, Block* bias) {
  Block y(strided_bytes(c.tokens, c.rows, c.y_padding, c.y_dtype));
  const bitimpl_matrix from = {x.data(), c.x_dtype, 0, c.tokens, c.cols, c.cols + c.x_padding};
  const bitimpl_matrix to = {y.data(), c.y_dtype, 0, c.tokens, c.rows, c.rows + c.y_padding};
  const int64_t bytes = bitimpl_linear_workspace(&w, c.tokens, c.activation);
  if (bytes < 0) stop(line, "no workspace size");
  Block workspace(bytes);
  const auto op = c.format == BITIMPL_BINARY ? bitimpl_binary_linear : bitimpl_ternary_linear;
  const int status = op(&w, &from, c.activation, bias == nullptr ? nullptr : bias->data(),
                        bias == nullptr ? 0 : c.bias_dtype, &to, workspace.data(), bytes);
  if (status != BITIMPL_OK) stop(line, "the operator failed");
  return y;
}

void run_case(const std::string& line, const Case& c, const std::vector<std::string>& isas) {
  Random random;
  Block codes(c.components * c.rows * c.cols);
  for (size_t i = 0; i < codes.bytes; ++i) {
    const uint32_t r = random.next();
    const int code = c.extreme ? 1 : c.format == BITIMPL_BINARY ? 1 - 2 * int(r & 1) : int(r % 3) - 1;
    codes.data()[i] = static_cast<uint8_t>(code);
  }
  const int64_t groups = c.group_size > 0 ? (c.cols + c.group_size - 1) / c.group_size : 1;
  const int64_t scale_rows = c.per_tensor ? 1 : c.rows;
  Block scales(c.components * scale_rows * groups * size_of(c.scale_dtype));
  fill(scales, c.scale_dtype, random);
  const int64_t bytes =
      bitimpl_codes_bytes(c.format, c.components, c.rows, c.cols, c.group_size);
  if (bytes < 0) stop(line, "no such packed weight");
  Block packed(bytes);
  if (bitimpl_pack(c.format, c.components, c.rows, c.cols, c.group_size,
                   reinterpret_cast<const int8_t*>(codes.data()), packed.data(),
                   static_cast<int64_t>(packed.bytes)) != BITIMPL_OK)
    stop(line, "pack failed");

  bitimpl_weight w = {};
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
  w.scale_component_stride = scale_rows * groups;
  w.scale_row_stride = c.per_tensor ? 0 : groups;
  w.scale_group_stride = 1;
  check_packing(line, w, codes);

  Block x(strided_bytes(c.tokens, c.cols, c.x_padding, c.x_dtype));
  fill(x, c.x_dtype, random);
  std::unique_ptr<Block> bias;
  if (c.bias_dtype >= 0) {
    bias = std::make_unique<Block>(c.rows * size_of(c.bias_dtype));
    fill(*bias, c.bias_dtype, random);
  }
  std::unique_ptr<Block> first;
  for (const std::string& isa : isas) {
    if (bitimpl_select_isa(isa.c_str()) != BITIMPL_OK) stop(line, "cannot select the ISA");
    Block y = run(line, c, w, x, bias.get());
    if (first == nullptr) {
      first = std::make_unique<Block>(std::move(y));
    } else if (c.activation != BITIMPL_ACTIVATION_FLOAT &&
               std::memcmp(first->data(), y.data(), y.bytes) != 0) {
      stop(line, ("results of " + isa + " and " + isas.front() + " differ").c_str());
    }
  }
}

}  // namespace

int main() {
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
    if (!parse(line, c)) stop(line, "cannot read the case");
    run_case(line, c, isas);
  }
  std::printf("%ld cases on %s\n", cases, bitimpl_supported_isas());
  return 0;
}
