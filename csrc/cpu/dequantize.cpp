// Bytes -> float weights, any range of rows: what large batches of float activations multiply
// with, tile by tile.
#include <cstdint>
#include <cstring>

#include "../include/impl.h"
#include "epilogue.h"
#include "../common/error.h"
#include "../common/layout.h"
#include "parallel.h"

namespace bitimpl {
namespace {

// Bits of a sign flip for the four columns of a nibble: where the weight is -1.
struct NibbleSigns {
  uint32_t mask[16][4];
};

constexpr NibbleSigns make_nibble_signs() {
  NibbleSigns t{};
  for (int v = 0; v < 16; ++v)
    for (int i = 0; i < 4; ++i) t.mask[v][i] = (v >> i) & 1 ? 0u : 0x80000000u;
  return t;
}

constexpr NibbleSigns kNibbleSigns = make_nibble_signs();

// out[0..4) = (or +=) +-scale by the four bits of a nibble.
template <bool ADD>
inline void dequantize_nibble(int nibble, uint32_t scale_bits, float* out) {
  uint32_t bits[4];
  for (int i = 0; i < 4; ++i) bits[i] = kNibbleSigns.mask[nibble][i] ^ scale_bits;
  float value[4];
  std::memcpy(value, bits, sizeof value);
  for (int i = 0; i < 4; ++i) out[i] = ADD ? out[i] + value[i] : value[i];
}

template <bool ADD>
void dequantize_bits(const uint8_t* bytes, int64_t n, float scale, float* out) {
  uint32_t scale_bits;
  std::memcpy(&scale_bits, &scale, 4);
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) {
    const int byte = bytes[k / 8];
    dequantize_nibble<ADD>(byte & 15, scale_bits, out + k);
    dequantize_nibble<ADD>(byte >> 4, scale_bits, out + k + 4);
  }
  for (; k < n; ++k) {
    const float value = (bytes[k / 8] >> (k % 8)) & 1 ? scale : -scale;
    out[k] = ADD ? out[k] + value : value;
  }
}

float weight_scale(const bitimpl_weight& w, int64_t component, int64_t row, int64_t group) {
  const int64_t at = component * w.scale_component_stride + row * w.scale_row_stride +
                     group * w.scale_group_stride;
  if (w.scale_dtype == BITIMPL_F32) return static_cast<const float*>(w.scales)[at];
  return float_from_f16(static_cast<const uint16_t*>(w.scales)[at]);
}

void dequantize_binary_row(const bitimpl_weight& w, const Geometry& g, int64_t row, float* out) {
  for (int64_t c = 0; c < g.components; ++c) {
    const uint8_t* bytes = w.codes + (c * g.rows + row) * g.row_bytes;
    for (int64_t begin = 0, s = 0; begin < g.cols; begin += g.segment, ++s) {
      const int64_t n = least(g.segment, g.cols - begin);
      const float scale = weight_scale(w, c, row, s);
      if (c == 0) dequantize_bits<false>(bytes + begin / 8, n, scale, out + begin);
      else dequantize_bits<true>(bytes + begin / 8, n, scale, out + begin);
    }
  }
}

template <int32_t FORMAT, int J, bool ADD>
void dequantize_step(const uint8_t* bytes, int64_t n, float scale, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = static_cast<float>(digit<FORMAT, J>(bytes[i]) - 1) * scale;
    out[i] = ADD ? out[i] + value : value;
  }
}

// Rows [row_begin, row_end) that lie in one row group; out is row row_begin.
template <int32_t FORMAT>
void dequantize_group(const bitimpl_weight& w, const Geometry& g, int64_t group,
                      int64_t row_begin, int64_t row_end, float* out, int64_t stride) {
  const int64_t first = group * g.per_byte;
  for (int64_t c = 0; c < g.components; ++c) {
    Steps(g, c, group).each([&](int64_t k, int64_t n, int64_t segment, int64_t offset) {
      const uint8_t* bytes = w.codes + offset;
      each_place<FORMAT>(row_end - first, [&](auto p) {
        constexpr int j = decltype(p)::index;
        const int64_t row = first + j;
        if (row < row_begin) return;
        float* to = out + (row - row_begin) * stride + k;
        const float scale = weight_scale(w, c, row, segment);
        if (c == 0) dequantize_step<FORMAT, j, false>(bytes, n, scale, to);
        else dequantize_step<FORMAT, j, true>(bytes, n, scale, to);
      });
    });
  }
}

struct DequantizeJob {
  const bitimpl_weight& w;
  Geometry g;
  int64_t row_begin, row_end;
  int64_t first_unit;
  float* out;
  int64_t stride;
};

void dequantize_range(void* context, int, int64_t begin, int64_t end) {
  const DequantizeJob& job = *static_cast<const DequantizeJob*>(context);
  const Geometry& g = job.g;
  for (int64_t unit = job.first_unit + begin; unit < job.first_unit + end; ++unit) {
    if (g.format == BITIMPL_BINARY) {
      dequantize_binary_row(job.w, g, unit, job.out + (unit - job.row_begin) * job.stride);
      continue;
    }
    const int64_t unit_begin = unit * g.per_byte;
    const int64_t from = unit_begin < job.row_begin ? job.row_begin : unit_begin;
    const int64_t to = least(unit_begin + g.per_byte, job.row_end);
    float* out = job.out + (from - job.row_begin) * job.stride;
    if (g.format == BITIMPL_TWO_BIT)
      dequantize_group<BITIMPL_TWO_BIT>(job.w, g, unit, from, to, out, job.stride);
    else
      dequantize_group<BITIMPL_BASE3>(job.w, g, unit, from, to, out, job.stride);
  }
}

}  // namespace
}  // namespace bitimpl

using namespace bitimpl;

extern "C" int bitimpl_dequantize(const bitimpl_weight* weight, int64_t row_begin, int64_t row_end,
                       float* out, int64_t out_row_stride) {
  clear_error();
  const int status = check_weight(weight, true);
  if (status != BITIMPL_OK) return status;
  const bitimpl_weight& w = *weight;
  if (row_begin < 0 || row_end < row_begin || row_end > w.rows)
    return fail(BITIMPL_INVALID_ARGUMENT,
                "rows [%lld, %lld) of a weight with %lld: pass 0 <= row_begin <= row_end <= rows",
                show(row_begin), show(row_end), show(w.rows));
  if (row_begin == row_end) return BITIMPL_OK;
  if (out == nullptr)
    return fail(BITIMPL_INVALID_ARGUMENT, "out is null: pass float32 [%lld, %lld]",
                show(row_end - row_begin), show(w.cols));
  if (row_end - row_begin > 1 && out_row_stride < w.cols)
    return fail(BITIMPL_INVALID_ARGUMENT,
                "out_row_stride is %lld for %lld columns: rows must not overlap",
                show(out_row_stride), show(w.cols));
  const Geometry g = geometry_of(w);
  const int64_t unit_rows = g.format == BITIMPL_BINARY ? 1 : g.per_byte;
  const int64_t first = row_begin / unit_rows;
  const int64_t units = (row_end + unit_rows - 1) / unit_rows - first;
  DequantizeJob job = {w, g, row_begin, row_end, first, out, out_row_stride};
  const double work = work_of(g) * static_cast<double>(row_end - row_begin) / w.rows;
  parallel_ranges(units, 1, work, available_threads(), dequantize_range, &job);
  return BITIMPL_OK;
}
