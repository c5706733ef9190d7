#include "operators.h"

#include <stdio.h>

namespace bitimpl {
namespace {

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

}  // namespace

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

LinearTask slice(const LinearTask& whole, int64_t begin, int64_t end) {
  LinearTask part = whole;
  part.rows = end - begin;
  if (whole.format == BITIMPL_BINARY) {
    part.codes += begin * ((whole.cols + 7) / 8);
  } else {
    const int64_t per_byte = whole.format == BITIMPL_BASE3 ? 5 : 4;
    part.codes += begin / per_byte * whole.components * whole.cols;
  }
  const int64_t scale_bytes = whole.scale_dtype == BITIMPL_F32 ? 4 : 2;
  part.scales = static_cast<const char*>(whole.scales) + begin * whole.scale_row_stride * scale_bytes;
  if (whole.bias != nullptr) part.bias = whole.bias + begin;
  if (whole.lower != nullptr) {
    part.lower = whole.lower + begin;
    part.upper = whole.upper + begin;
    part.least = whole.least + begin;
    part.most = whole.most + begin;
  }
  return part;
}

void set_thresholds(const bitimpl_signs& signs, LinearTask* task) {
  task->lower = signs.lower;
  task->upper = signs.upper;
  task->least = signs.least;
  task->most = signs.most;
  task->y_scale = signs.y_scale;
}

double operator_work(const LinearTask& task) {
  const Activations& x = task.x;
  const double cost = x.kind == BITIMPL_ACTIVATION_FLOAT ? 4.0
                      : x.planes > 0                     ? x.planes
                                                         : 0.25 * x.bit_planes;
  return cost * static_cast<double>(x.rows) * static_cast<double>(task.rows) *
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
