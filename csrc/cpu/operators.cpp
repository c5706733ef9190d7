#include "operators.h"

#include <stdio.h>

#include "checks.h"

namespace bitimpl {
namespace {

// Sums of int8 activations over a segment stay in int32: 128 * kMaxSegment < 2^31.
constexpr int64_t kMaxSegment = (int64_t{1} << 24) - 1;

// What served the thread's last operator call; put into words only when asked.
struct Served {
  const char* op;
  const char* format;
  const char* activation;
  const char* form;
  const char* isa;
};
thread_local Served served = {};
thread_local char served_name[96] = "";

int64_t segment_of(const bitimpl_weight& w) {
  return w.group_size > 0 && w.group_size < w.cols ? w.group_size : w.cols;
}

}  // namespace

const char* name_of_activation(int32_t activation) {
  switch (activation) {
    case BITIMPL_ACTIVATION_FLOAT: return "float";
    case BITIMPL_ACTIVATION_SIGN: return "sign";
    case BITIMPL_ACTIVATION_TERNARY: return "ternary";
    case BITIMPL_ACTIVATION_INT8: return "int8";
    case BITIMPL_ACTIVATION_INT16: return "int16";
    default: return nullptr;
  }
}

int check_operator(Operator op, const char* family, const bitimpl_weight& w, int32_t activation) {
  const bool binary = w.format == BITIMPL_BINARY;
  if (operator_of(w.format) != op) {
    return fail(BITIMPL_INVALID_ARGUMENT, "bitimpl_%s_%s does not take format %s: call bitimpl_%s_%s",
                binary ? "ternary" : "binary", family, name_of_format(w.format),
                binary ? "binary" : "ternary", family);
  }
  if (name_of_activation(activation) == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "activation is %d: use %d (float), %d (sign), %d (ternary), %d (int8) or %d (int16)",
                activation, BITIMPL_ACTIVATION_FLOAT, BITIMPL_ACTIVATION_SIGN,
                BITIMPL_ACTIVATION_TERNARY, BITIMPL_ACTIVATION_INT8, BITIMPL_ACTIVATION_INT16);
  }
  if (activation != BITIMPL_ACTIVATION_FLOAT && segment_of(w) > kMaxSegment) {
    return fail(BITIMPL_UNSUPPORTED,
                "%lld columns share a scale; integer activations are exact up to %lld: "
                "use a smaller group_size or float activations",
                show(segment_of(w)), show(kMaxSegment));
  }
  return BITIMPL_OK;
}

int check_bias(const void* bias, int32_t bias_dtype) {
  if (bias == nullptr) return BITIMPL_OK;
  const int64_t bytes = bytes_of_dtype(bias_dtype);
  if (bytes == 0) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "bias_dtype is %d: use %d (float32), %d (float16) or %d (bfloat16)", bias_dtype,
                BITIMPL_F32, BITIMPL_F16, BITIMPL_BF16);
  }
  if (!aligned(bias, bytes)) {
    return fail(BITIMPL_INVALID_ARGUMENT, "bias lies at %p: align it to its %lld bytes", bias,
                show(bytes));
  }
  return BITIMPL_OK;
}

Operator operator_of(int32_t format) {
  return format == BITIMPL_BINARY ? Operator::kBinary : Operator::kTernary;
}

int64_t block_rows_of(int32_t format) {
  if (format == BITIMPL_BASE3) return kBase3BlockRows;
  return format == BITIMPL_TWO_BIT ? kTwoBitBlockRows : kBinaryBlockRows;
}

LinearTask describe(const bitimpl_weight& w) {
  LinearTask task = {};
  task.format = w.format;
  task.components = w.components;
  task.rows = w.rows;
  task.cols = w.cols;
  task.stored_rows = w.rows;
  task.segment = segment_of(w);
  task.segments = (w.cols + task.segment - 1) / task.segment;
  task.codes = w.codes;
  task.scales = w.scales;
  task.scale_dtype = w.scale_dtype;
  task.scale_component_stride = w.scale_component_stride;
  task.scale_row_stride = w.scale_row_stride;
  task.scale_group_stride = w.scale_group_stride;
  return task;
}

double operator_work(const LinearTask& task, const Activations& x, int64_t tokens) {
  const double cost = x.kind == BITIMPL_ACTIVATION_FLOAT ? 4.0
                      : x.planes > 0                     ? x.planes
                                                         : 0.25 * x.bit_planes;
  return cost * static_cast<double>(tokens) * static_cast<double>(task.rows) *
         static_cast<double>(task.cols) * task.components;
}

int64_t token_parts(int64_t pieces, int64_t tokens, int threads) {
  constexpr int64_t kLeastTokens = 16;
  const int64_t wanted = (2 * threads + pieces - 1) / pieces;
  const int64_t possible = tokens / kLeastTokens;
  const int64_t parts = wanted < possible ? wanted : possible;
  return parts < 1 ? 1 : parts;
}

char* aligned_base(void* workspace) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(workspace);
  return static_cast<char*>(workspace) + ((start + 63) / 64 * 64 - start);
}

const float* float_bias(const KernelTable& kernels, const void* bias, int32_t bias_dtype,
                        int64_t rows, float* room) {
  if (bias == nullptr || bias_dtype == BITIMPL_F32) return static_cast<const float*>(bias);
  kernels.to_float(bias, bias_dtype, rows, room);
  return room;
}

void record_served(const char* op, const char* format, const Activations& x, const char* isa,
                   const char* form) {
  if (form == nullptr) form = x.rows <= kGemvTokens ? "gemv" : "gemm";
  served = {op, format, name_of_activation(x.kind), form, isa};
}

}  // namespace bitimpl

extern "C" const char* bitimpl_last_kernel(void) {
  const bitimpl::Served& s = bitimpl::served;
  if (s.op == nullptr) return "";
  snprintf(bitimpl::served_name, sizeof bitimpl::served_name, "%s/%s/%s/%s/%s", s.op, s.format,
           s.activation, s.form, s.isa);
  return bitimpl::served_name;
}
