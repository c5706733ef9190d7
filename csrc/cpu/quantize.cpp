#include "quantize.h"

#include <math.h>
#include <string.h>

#include "error.h"
#include "isa.h"
#include "parallel.h"

namespace bitimpl {
namespace {

// Columns converted to float32 at a time, on the stack; a multiple of 64.
constexpr int64_t kChunk = 1024;
// The least max|x| of a row, as in BitNet b1.58: an all-zero row must not divide by zero.
constexpr float kLeastMagnitude = 1e-5f;

float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Row m of a matrix of any type, read as float32 a piece at a time.
struct Row {
  const KernelTable& kernels;
  const char* data;
  int32_t dtype;
  int64_t cols;
  float chunk[kChunk];

  Row(const KernelTable& table, const bitimpl_matrix& x, int64_t m)
      : kernels(table), dtype(x.dtype), cols(x.cols) {
    data = static_cast<const char*>(x.data) + m * x.row_stride * element_size();
  }

  int64_t element_size() const { return dtype == BITIMPL_F32 ? 4 : 2; }

  // Calls visit(first column, count, values) over [begin, end).
  template <class Visit>
  void each(int64_t begin, int64_t end, Visit visit) {
    if (dtype == BITIMPL_F32) {
      visit(begin, end - begin, reinterpret_cast<const float*>(data) + begin);
      return;
    }
    for (int64_t k = begin; k < end; k += kChunk) {
      const int64_t count = end - k < kChunk ? end - k : kChunk;
      kernels.to_float(data + k * element_size(), dtype, count, chunk);
      visit(k, count, chunk);
    }
  }

  uint32_t max_magnitude() {
    uint32_t most = 0;
    each(0, cols, [&](int64_t, int64_t count, const float* values) {
      const uint32_t piece = kernels.max_magnitude(values, count);
      most = piece > most ? piece : most;
    });
    return most;
  }
};

void quantize_row_int8(Row& row, int64_t segment, int8_t* q, int32_t* sums, float* scale) {
  const float factor = quantisation_factor(row.max_magnitude(), kInt8Limit, scale);
  for (int64_t begin = 0, g = 0; begin < row.cols; begin += segment, ++g) {
    const int64_t end = row.cols - begin < segment ? row.cols : begin + segment;
    int32_t sum = 0;
    if (factor == 0.0f) {
      memset(q + begin, 0, static_cast<size_t>(end - begin));
    } else {
      row.each(begin, end, [&](int64_t k, int64_t count, const float* values) {
        sum += row.kernels.round_int8(values, count, factor, q + k);
      });
    }
    if (sums != nullptr) sums[g] = sum;
  }
}

void quantize_row_int16(Row& row, int64_t segment, int8_t* hi, int8_t* lo, int32_t* hi_sums,
                        int32_t* lo_sums, float* scale) {
  const float factor = quantisation_factor(row.max_magnitude(), kInt16Limit, scale);
  for (int64_t begin = 0, g = 0; begin < row.cols; begin += segment, ++g) {
    const int64_t end = row.cols - begin < segment ? row.cols : begin + segment;
    int32_t hi_sum = 0;
    int32_t lo_sum = 0;
    if (factor == 0.0f) {
      memset(hi + begin, 0, static_cast<size_t>(end - begin));
      memset(lo + begin, 0, static_cast<size_t>(end - begin));
    } else {
      row.each(begin, end, [&](int64_t k, int64_t count, const float* values) {
        int32_t piece[2];
        row.kernels.round_int16(values, count, factor, hi + k, lo + k, piece);
        hi_sum += piece[0];
        lo_sum += piece[1];
      });
    }
    hi_sums[g] = hi_sum;
    lo_sums[g] = lo_sum;
  }
}

void pack_row_signs(Row& row, uint64_t* signs, int64_t words, float* scale) {
  double sum = 0.0;
  row.each(0, row.cols, [&](int64_t k, int64_t count, const float* values) {
    sum += row.kernels.pack_signs(values, count, signs + k / 64);
  });
  const int64_t used = (row.cols + 63) / 64;
  memset(signs + used, 0, static_cast<size_t>(words - used) * sizeof(uint64_t));
  // Magnitudes of float32 cannot overflow a float64: the sum is finite where all of them are.
  *scale = isfinite(sum) ? static_cast<float>(sum / static_cast<double>(row.cols)) : NAN;
}

// Everything a thread needs to prepare a range of rows.
struct Preparation {
  const KernelTable& kernels;
  const bitimpl_matrix& x;
  int64_t segment;
  int64_t segments;
  const WorkspaceLayout& layout;
  int32_t activation;
  char* base;
};

void prepare_range(void* context, int, int64_t begin, int64_t end) {
  const Preparation& p = *static_cast<const Preparation*>(context);
  const WorkspaceLayout& at = p.layout;
  float* scale = reinterpret_cast<float*>(p.base + at.scale);
  for (int64_t m = begin; m < end; ++m) {
    Row row(p.kernels, p.x, m);
    if (p.activation == BITIMPL_ACTIVATION_FLOAT) {
      float* values = reinterpret_cast<float*>(p.base + at.values) + m * row.cols;
      p.kernels.to_float(row.data, row.dtype, row.cols, values);
      continue;
    }
    if (p.activation == BITIMPL_ACTIVATION_SIGN) {
      uint64_t* signs = reinterpret_cast<uint64_t*>(p.base + at.signs) + m * at.sign_stride;
      pack_row_signs(row, signs, at.sign_stride, scale + m);
      continue;
    }
    int8_t* q[2];
    int32_t* sums[2];
    for (int plane = 0; plane < 2; ++plane) {
      q[plane] = reinterpret_cast<int8_t*>(p.base + at.q[plane]) + m * at.q_stride;
      sums[plane] = reinterpret_cast<int32_t*>(p.base + at.sums[plane]) + m * p.segments;
    }
    const size_t padding = static_cast<size_t>(at.q_stride - row.cols);
    memset(q[0] + row.cols, 0, padding);
    if (p.activation == BITIMPL_ACTIVATION_INT8) {
      quantize_row_int8(row, p.segment, q[0], sums[0], scale + m);
    } else {
      memset(q[1] + row.cols, 0, padding);
      quantize_row_int16(row, p.segment, q[0], q[1], sums[0], sums[1], scale + m);
    }
  }
}

}  // namespace

float quantisation_factor(uint32_t magnitude_bits, float limit, float* scale) {
  if (magnitude_bits >= kInfinityBits) {
    *scale = NAN;
    return 0.0f;
  }
  const float magnitude = float_of(magnitude_bits);
  const float amax = magnitude > kLeastMagnitude ? magnitude : kLeastMagnitude;
  *scale = amax / limit;
  return limit / amax;
}

WorkspaceLayout lay_out_workspace(int64_t tokens, int64_t rows, int64_t cols, int64_t segments,
                                  int32_t activation, int64_t kernel_scratch) {
  WorkspaceLayout layout = {};
  int64_t used = 0;
  const auto take = [&used](int64_t bytes) {
    const int64_t at = used;
    used = round_up(used + bytes, 64);
    return at;
  };
  layout.q_stride = q_stride_of(cols);
  layout.sign_stride = sign_stride_of(cols);

  const bool integer = activation == BITIMPL_ACTIVATION_INT8 || activation == BITIMPL_ACTIVATION_INT16;
  const int planes = activation == BITIMPL_ACTIVATION_INT16 ? 2 : 1;
  layout.values = take(activation == BITIMPL_ACTIVATION_FLOAT ? tokens * cols * 4 : 0);
  for (int plane = 0; plane < 2; ++plane) {
    const bool present = integer && plane < planes;
    layout.q[plane] = take(present ? tokens * layout.q_stride : 0);
    layout.sums[plane] = take(present ? tokens * segments * 4 : 0);
  }
  layout.signs = take(activation == BITIMPL_ACTIVATION_SIGN ? tokens * layout.sign_stride * 8 : 0);
  layout.scale = take(tokens * 4);
  layout.bias = take(rows * 4);
  layout.scratch = used;
  layout.scratch_stride = round_up(kernel_scratch, 64);
  return layout;
}

void prepare_activations(const KernelTable& kernels, const bitimpl_matrix& x, int32_t activation,
                         int64_t segment, int64_t segments, const WorkspaceLayout& layout,
                         char* base, int threads, Activations* out) {
  *out = {};
  out->kind = activation;
  out->rows = x.rows;
  if (activation == BITIMPL_ACTIVATION_FLOAT && x.dtype == BITIMPL_F32) {
    out->values = static_cast<const float*>(x.data);
    out->value_stride = x.row_stride;
    return;
  }
  Preparation preparation = {kernels, x, segment, segments, layout, activation, base};
  // Reading, scaling and rounding one activation costs about as much as 8 multiply-accumulates.
  const double work = 8.0 * static_cast<double>(x.rows) * static_cast<double>(x.cols);
  parallel_ranges(x.rows, 1, work, threads, prepare_range, &preparation);

  if (activation == BITIMPL_ACTIVATION_FLOAT) {
    out->values = reinterpret_cast<const float*>(base + layout.values);
    out->value_stride = x.cols;
    return;
  }
  out->scale = reinterpret_cast<const float*>(base + layout.scale);
  if (activation == BITIMPL_ACTIVATION_SIGN) {
    out->signs = reinterpret_cast<const uint64_t*>(base + layout.signs);
    out->sign_stride = layout.sign_stride;
    return;
  }
  out->planes = activation == BITIMPL_ACTIVATION_INT16 ? 2 : 1;
  out->q_stride = layout.q_stride;
  for (int plane = 0; plane < out->planes; ++plane) {
    out->q[plane] = reinterpret_cast<const int8_t*>(base + layout.q[plane]);
    out->sums[plane] = reinterpret_cast<const int32_t*>(base + layout.sums[plane]);
  }
}

}  // namespace bitimpl

namespace {

struct QuantizeCall {
  const bitimpl::KernelTable& kernels;
  const bitimpl_matrix& x;
  int8_t* q;
  float* scale;
};

void quantize_range(void* context, int, int64_t begin, int64_t end) {
  const QuantizeCall& call = *static_cast<const QuantizeCall*>(context);
  for (int64_t m = begin; m < end; ++m) {
    bitimpl::Row row(call.kernels, call.x, m);
    bitimpl::quantize_row_int8(row, row.cols, call.q + m * row.cols, nullptr, call.scale + m);
  }
}

}  // namespace

extern "C" int bitimpl_quantize_int8(const bitimpl_matrix* x, int8_t* q, float* scale) {
  using namespace bitimpl;
  clear_error();
  const KernelTable* kernels = active_kernels();
  if (kernels == nullptr) return BITIMPL_UNSUPPORTED;
  const int status = check_matrix(x, "x");
  if (status != BITIMPL_OK) return status;
  if (x->rows == 0) return BITIMPL_OK;
  if (q == nullptr || scale == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "%s is null: pass a buffer for %lld rows",
                q == nullptr ? "q" : "scale", static_cast<long long>(x->rows));
  }
  QuantizeCall call = {*kernels, *x, q, scale};
  const double work = 8.0 * static_cast<double>(x->rows) * static_cast<double>(x->cols);
  parallel_ranges(x->rows, 1, work, available_threads(), quantize_range, &call);
  return BITIMPL_OK;
}
