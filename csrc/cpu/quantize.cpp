#include "quantize.h"

#include <math.h>
#include <string.h>

#include "../common/error.h"
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

  // The same over the whole row, in pieces of kChunk columns whatever the type.
  template <class Visit>
  void each_piece(Visit visit) {
    for (int64_t k = 0; k < cols; k += kChunk) each(k, cols - k < kChunk ? cols : k + kChunk, visit);
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

// Signs or ternary values of a row, as bits and as what kernels take of them: the one or the other is
// written. Always in the same pieces, so that the sums are the same in either form.
struct BitRow {
  Row& row;
  bool ternary;
  uint64_t* signs;    // null: q
  uint64_t* nonzero;  // TERNARY
  int8_t* q;
  int64_t segment;
  int32_t* sums;  // of q or, as bits, the ones of `nonzero`; null: nobody asks
  uint64_t piece[2][kChunk / 64];

  // The piece of `count` columns from k on, as bits, to q or to the segments' counts.
  void spread(int64_t k, int64_t count, const uint64_t* sign, const uint64_t* present) {
    const uint8_t* plus = reinterpret_cast<const uint8_t*>(sign);
    const uint8_t* kept = reinterpret_cast<const uint8_t*>(present);
    for (int64_t at = k; at < k + count;) {
      const int64_t g = at / segment;
      const int64_t stop = (g + 1) * segment < k + count ? (g + 1) * segment : k + count;
      const int64_t byte = (at - k) / 8;
      if (signs == nullptr) {
        sums[g] += row.kernels.spread_bits(plus + byte, kept == nullptr ? nullptr : kept + byte,
                                           stop - at, q + at);
      } else {
        sums[g] += static_cast<int32_t>(row.kernels.count_ones(kept, at - k, stop - at));
      }
      at = stop;
    }
  }

  // Fills the row; returns its scale.
  float fill() {
    const double cols = static_cast<double>(row.cols);
    double sum = 0.0;
    float threshold = 0.0f;
    if (ternary) {
      row.each_piece([&](int64_t, int64_t count, const float* values) {
        sum += row.kernels.sum_magnitudes(values, count);
      });
      threshold = ternary_threshold(sum, cols);
      sum = 0.0;
    }
    int64_t kept = 0;
    row.each_piece([&](int64_t k, int64_t count, const float* values) {
      uint64_t* sign = signs == nullptr ? piece[0] : signs + k / 64;
      uint64_t* present = signs == nullptr ? piece[1] : nonzero + k / 64;
      if (ternary) {
        sum += row.kernels.pack_ternary(values, count, threshold, sign, present);
        kept += row.kernels.count_ones(reinterpret_cast<const uint8_t*>(present), 0, count);
      } else {
        sum += row.kernels.pack_signs(values, count, sign);
        present = nullptr;
      }
      if (sums != nullptr) spread(k, count, sign, present);
    });
    return ternary ? ternary_scale(threshold, sum, kept) : mean_magnitude(sum, cols);
  }
};

// Everything a thread needs to prepare a range of rows.
struct Preparation {
  const KernelTable& kernels;
  const bitimpl_matrix& x;
  const float* x_scale;
  const LinearTask& task;
  const WorkspaceLayout& layout;
  char* base;

  template <class Value>
  Value* at(int64_t offset) const {
    return reinterpret_cast<Value*>(base + offset);
  }

  // SIGN where x is of signs already: its bits, or bytes made of them.
  void take_signs(int64_t m) const {
    const uint8_t* bits = static_cast<const uint8_t*>(x.data) + m * x.row_stride / 8;
    at<float>(layout.scale)[m] = x_scale[m];
    if (task.x.planes > 0) {
      int8_t* q = at<int8_t>(layout.q[0]) + m * layout.q_stride;
      int32_t* sums = at<int32_t>(layout.sums[0]) + m * task.segments;
      for (int64_t begin = 0, g = 0; begin < x.cols; begin += task.segment, ++g) {
        const int64_t count = x.cols - begin < task.segment ? x.cols - begin : task.segment;
        sums[g] = kernels.spread_bits(bits + begin / 8, nullptr, count, q + begin);
      }
      memset(q + x.cols, 0, static_cast<size_t>(layout.q_stride - x.cols));
      return;
    }
    uint8_t* signs = reinterpret_cast<uint8_t*>(at<uint64_t>(layout.signs) + m * layout.sign_stride);
    const int64_t used = (x.cols + 7) / 8;
    memcpy(signs, bits, static_cast<size_t>(used));
    if (x.cols % 8 != 0) signs[used - 1] = static_cast<uint8_t>(signs[used - 1] & ((1u << x.cols % 8) - 1));
    memset(signs + used, 0, static_cast<size_t>(8 * layout.sign_stride - used));
  }

  // SIGN and TERNARY.
  void prepare_bits(Row& row, int64_t m) const {
    const int64_t segments = task.segments;
    const bool ternary = task.x.kind == BITIMPL_ACTIVATION_TERNARY;
    BitRow bits = {row, ternary, nullptr, nullptr, nullptr, task.segment, nullptr, {}};
    if (task.x.planes > 0) {
      bits.q = at<int8_t>(layout.q[0]) + m * layout.q_stride;
      bits.sums = at<int32_t>(layout.sums[0]) + m * segments;
      memset(bits.q + row.cols, 0, static_cast<size_t>(layout.q_stride - row.cols));
    } else {
      const int64_t used = (row.cols + 63) / 64;
      const size_t rest = static_cast<size_t>(layout.sign_stride - used) * sizeof(uint64_t);
      bits.signs = at<uint64_t>(layout.signs) + m * layout.sign_stride;
      memset(bits.signs + used, 0, rest);
      if (ternary) {
        bits.nonzero = at<uint64_t>(layout.nonzero) + m * layout.sign_stride;
        bits.sums = at<int32_t>(layout.counts) + m * segments;
        memset(bits.nonzero + used, 0, rest);
      }
    }
    if (bits.sums != nullptr) memset(bits.sums, 0, static_cast<size_t>(segments) * sizeof(int32_t));
    at<float>(layout.scale)[m] = bits.fill();
  }
};

void prepare_range(void* context, int, int64_t begin, int64_t end) {
  const Preparation& p = *static_cast<const Preparation*>(context);
  const WorkspaceLayout& at = p.layout;
  const int32_t kind = p.task.x.kind;
  const int64_t segment = p.task.segment;
  float* scale = p.at<float>(at.scale);
  for (int64_t m = begin; m < end; ++m) {
    if (p.x.dtype == BITIMPL_SIGNS) {
      p.take_signs(m);
      continue;
    }
    Row row(p.kernels, p.x, m);
    if (kind == BITIMPL_ACTIVATION_FLOAT) {
      p.kernels.to_float(row.data, row.dtype, row.cols, p.at<float>(at.values) + m * row.cols);
      continue;
    }
    if (kind == BITIMPL_ACTIVATION_SIGN || kind == BITIMPL_ACTIVATION_TERNARY) {
      p.prepare_bits(row, m);
      continue;
    }
    int8_t* q[2];
    int32_t* sums[2];
    for (int plane = 0; plane < 2; ++plane) {
      q[plane] = p.at<int8_t>(at.q[plane]) + m * at.q_stride;
      sums[plane] = p.at<int32_t>(at.sums[plane]) + m * p.task.segments;
    }
    const size_t padding = static_cast<size_t>(at.q_stride - row.cols);
    memset(q[0] + row.cols, 0, padding);
    if (kind == BITIMPL_ACTIVATION_INT8) {
      quantize_row_int8(row, segment, q[0], sums[0], scale + m);
    } else {
      memset(q[1] + row.cols, 0, padding);
      quantize_row_int16(row, segment, q[0], q[1], sums[0], sums[1], scale + m);
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

float mean_magnitude(double sum, double count) {
  // Magnitudes of float32 cannot overflow a float64: the sum is finite where all of them are.
  return isfinite(sum) ? static_cast<float>(sum / count) : NAN;
}

float ternary_threshold(double sum, double count) {
  return isfinite(sum) ? static_cast<float>(0.75 * (sum / count)) : NAN;
}

float ternary_scale(float threshold, double kept_sum, int64_t kept) {
  if (isnan(threshold)) return NAN;
  return kept > 0 ? static_cast<float>(kept_sum / static_cast<double>(kept)) : 0.0f;
}

WorkspaceLayout lay_out_workspace(const LinearTask& task, int64_t kernel_scratch) {
  const Activations& x = task.x;
  const int64_t tokens = x.rows;
  WorkspaceLayout layout = {};
  int64_t used = 0;
  const auto take = [&used](int64_t bytes) {
    const int64_t at = used;
    used = round_up(used + bytes, 64);
    return at;
  };
  layout.q_stride = q_stride_of(task.cols);
  layout.sign_stride = sign_stride_of(task.cols);

  layout.values = take(x.kind == BITIMPL_ACTIVATION_FLOAT ? tokens * task.cols * 4 : 0);
  for (int plane = 0; plane < 2; ++plane) {
    layout.q[plane] = take(plane < x.planes ? tokens * layout.q_stride : 0);
    layout.sums[plane] = take(plane < x.planes ? tokens * task.segments * 4 : 0);
  }
  layout.signs = take(x.bit_planes > 0 ? tokens * layout.sign_stride * 8 : 0);
  layout.nonzero = take(x.bit_planes > 1 ? tokens * layout.sign_stride * 8 : 0);
  layout.counts = take(x.bit_planes > 1 ? tokens * task.segments * 4 : 0);
  layout.scale = take(tokens * 4);
  layout.bias = take(task.rows * 4);
  layout.scratch = used;
  layout.scratch_stride = round_up(kernel_scratch, 64);
  return layout;
}

void prepare_activations(const KernelTable& kernels, const bitimpl_matrix& x, const float* x_scale,
                         const WorkspaceLayout& layout, char* base, int threads, LinearTask* task) {
  Activations* out = &task->x;
  if (out->kind == BITIMPL_ACTIVATION_FLOAT && x.dtype == BITIMPL_F32) {
    out->values = static_cast<const float*>(x.data);
    out->value_stride = x.row_stride;
    return;
  }
  Preparation preparation = {kernels, x, x_scale, *task, layout, base};
  // Reading, scaling and rounding one activation costs about as much as 8 multiply-accumulates.
  const double work = 8.0 * static_cast<double>(x.rows) * static_cast<double>(x.cols);
  parallel_ranges(x.rows, 1, work, threads, prepare_range, &preparation);

  if (out->kind == BITIMPL_ACTIVATION_FLOAT) {
    out->values = reinterpret_cast<const float*>(base + layout.values);
    out->value_stride = x.cols;
    return;
  }
  out->scale = reinterpret_cast<const float*>(base + layout.scale);
  if (out->bit_planes > 0) {
    out->signs = reinterpret_cast<const uint64_t*>(base + layout.signs);
    out->sign_stride = layout.sign_stride;
    if (out->bit_planes > 1) {
      out->nonzero = reinterpret_cast<const uint64_t*>(base + layout.nonzero);
      out->counts = reinterpret_cast<const int32_t*>(base + layout.counts);
    }
    return;
  }
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
