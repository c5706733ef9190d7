// Runs operator calls for a test that cannot load the library itself: on a processor of another
// family, under emulation. Nothing is judged here but packing.
//
// Standard input is a sequence of calls, each the fields of Case (kernel_cases.py, in order, int64)
// and five arrays (an int64 of bytes, then the bytes): codes, packed codes, scales, x and bias.
// Standard output starts with the instruction sets, best first, and a newline; each call adds, for
// each instruction set in turn, the bytes of y, then q and scale of bitimpl_quantize_int8.
//
// Every buffer of a call ends where a page without access begins, so that a byte read or written
// past the end stops the program.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "block.h"
#include "impl.h"

namespace {

struct Case {
  int64_t format, components, rows, cols, group_size, activation, tokens, x_dtype, y_dtype, x_padding,
      y_padding, bias_dtype, scale_dtype, per_tensor, extreme;
};

[[noreturn]] void stop(long call, const char* what) {
  std::fprintf(stderr, "call %ld: %s; last error: \"%s\"\n", call, what, bitimpl_last_error());
  std::exit(1);
}

bool read_exactly(void* to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

int64_t read_size(long call) {
  int64_t bytes = 0;
  if (!read_exactly(&bytes, sizeof bytes) || bytes < 0) stop(call, "an array has no length");
  return bytes;
}

// The next array of standard input.
struct Array : Block {
  Array(long call, const char* name) : Block(read_size(call), name) {
    if (!read_exactly(data(), bytes)) stop(call, "an array is cut short");
    seal();
  }
};

void write(const Block& block) {
  if (std::fwrite(block.data(), 1, block.bytes, stdout) != block.bytes) stop(-1, "cannot write the output");
}

int64_t size_of(int64_t dtype) { return dtype == BITIMPL_F32 ? 4 : 2; }

void check_packing(long call, const bitimpl_weight& w, const Array& codes, const Array& packed) {
  const Block again(static_cast<int64_t>(packed.bytes), "packed again");
  if (bitimpl_pack(w.format, w.components, w.rows, w.cols, w.group_size,
                   reinterpret_cast<const int8_t*>(codes.data()), again.data(),
                   static_cast<int64_t>(again.bytes)) != BITIMPL_OK)
    stop(call, "pack failed");
  if (std::memcmp(again.data(), packed.data(), packed.bytes) != 0) stop(call, "packed bytes differ");
  const Block unpacked(static_cast<int64_t>(codes.bytes), "unpacked codes");
  if (bitimpl_unpack(&w, reinterpret_cast<int8_t*>(unpacked.data())) != BITIMPL_OK)
    stop(call, "unpack failed");
  if (std::memcmp(unpacked.data(), codes.data(), codes.bytes) != 0) stop(call, "unpacked codes differ");
}

void run_call(long call, const Case& c, const std::vector<std::string>& isas) {
  announce("call " + std::to_string(call), "packing");
  const Array codes(call, "codes"), packed(call, "packed codes"), scales(call, "scales"), x(call, "x"),
      bias(call, "bias");
  const int64_t groups = c.group_size > 0 ? (c.cols + c.group_size - 1) / c.group_size : 1;
  bitimpl_weight w = {};
  w.layout = BITIMPL_LAYOUT_V1;
  w.format = static_cast<int32_t>(c.format);
  w.components = static_cast<int32_t>(c.components);
  w.scale_dtype = static_cast<int32_t>(c.scale_dtype);
  w.rows = c.rows;
  w.cols = c.cols;
  w.group_size = c.group_size;
  w.codes = packed.data();
  w.codes_bytes = static_cast<int64_t>(packed.bytes);
  w.scales = scales.data();
  w.scale_component_stride = (c.per_tensor ? 1 : c.rows) * groups;
  w.scale_row_stride = c.per_tensor ? 0 : groups;
  w.scale_group_stride = 1;
  check_packing(call, w, codes, packed);

  const int32_t activation = static_cast<int32_t>(c.activation);
  const int64_t x_stride = c.cols + c.x_padding, y_stride = c.rows + c.y_padding;
  const int64_t y_bytes = c.tokens == 0 ? 0 : ((c.tokens - 1) * y_stride + c.rows) * size_of(c.y_dtype);
  const bitimpl_matrix from = {x.data(), static_cast<int32_t>(c.x_dtype), 0, c.tokens, c.cols, x_stride};
  for (const std::string& isa : isas) {
    if (bitimpl_select_isa(isa.c_str()) != BITIMPL_OK) stop(call, "cannot select the instruction set");
    announce("call " + std::to_string(call), isa);
    const Block y(y_bytes, "y");
    const bitimpl_matrix to = {y.data(), static_cast<int32_t>(c.y_dtype), 0, c.tokens, c.rows, y_stride};
    const int64_t bytes = bitimpl_linear_workspace(&w, c.tokens, activation);
    if (bytes < 0) stop(call, "no workspace size");
    const Block workspace(bytes, "workspace");
    const auto op = c.format == BITIMPL_BINARY ? bitimpl_binary_linear : bitimpl_ternary_linear;
    if (op(&w, &from, activation, c.bias_dtype < 0 ? nullptr : bias.data(),
           c.bias_dtype < 0 ? 0 : static_cast<int32_t>(c.bias_dtype), &to, workspace.data(),
           bytes) != BITIMPL_OK)
      stop(call, "the operator failed");
    write(y);
    const Block q(c.tokens * c.cols, "q"), scale(c.tokens * 4, "scale of q");
    if (bitimpl_quantize_int8(&from, reinterpret_cast<int8_t*>(q.data()),
                              reinterpret_cast<float*>(scale.data())) != BITIMPL_OK)
      stop(call, "quantize_int8 failed");
    write(q);
    write(scale);
  }
}

}  // namespace

int main() {
  use_guard_pages(Placement::kBehind);
  std::vector<std::string> isas;
  std::istringstream names(bitimpl_supported_isas());
  for (std::string name; std::getline(names, name, ',');) isas.push_back(name);
  std::printf("%s\n", bitimpl_supported_isas());
  Case c;
  for (long call = 0; read_exactly(&c, sizeof c); ++call) run_call(call, c, isas);
  for (const std::string& isa : isas) {
    if (bitimpl_select_isa(isa.c_str()) != BITIMPL_OK) stop(-1, "cannot select the instruction set");
    // The rulers of the peaks: both run, and say that they did.
    const bool portable = isa == "portable";
    if ((bitimpl_multiply_accumulate(BITIMPL_ACTIVATION_INT8, 3) > 0) == portable ||
        (bitimpl_multiply_accumulate(BITIMPL_ACTIVATION_SIGN, 3) > 0) == portable)
      stop(-1, "multiply_accumulate failed");
  }
  return 0;
}
