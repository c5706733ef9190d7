#include "checks.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include "layout.h"

namespace bitimpl {
namespace {

thread_local char last_error[512] = "";
thread_local int failed_with = BITIMPL_OK;

// Sums of int8 activations over a segment stay in int32: 128 * kMaxSegment < 2^31.
constexpr int64_t kMaxSegment = (int64_t{1} << 24) - 1;

int check_scales(const bitimpl_weight& w) {
  if (w.scale_dtype != BITIMPL_F32 && w.scale_dtype != BITIMPL_F16) {
    return fail(BITIMPL_INVALID_ARGUMENT, "scale_dtype is %d: use %d (float32) or %d (float16)",
                w.scale_dtype, BITIMPL_F32, BITIMPL_F16);
  }
  if (w.scales == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "scales is null: pass at least one scale");
  }
  if (!aligned(w.scales, bytes_of_dtype(w.scale_dtype))) {
    return fail(BITIMPL_INVALID_ARGUMENT, "scales lie at %p: align them to their %lld bytes",
                w.scales, show(bytes_of_dtype(w.scale_dtype)));
  }
  const int64_t strides[3] = {w.scale_component_stride, w.scale_row_stride, w.scale_group_stride};
  const char* const names[3] = {"component", "row", "group"};
  for (int i = 0; i < 3; ++i) {
    if (strides[i] < 0) {
      return fail(BITIMPL_INVALID_ARGUMENT,
                  "scale_%s_stride is %lld: use 0 to share a scale, else a positive stride",
                  names[i], show(strides[i]));
    }
  }
  return BITIMPL_OK;
}

// Sizes, stride and place of a matrix whose elements must be aligned to `bytes`.
int check_rows(const bitimpl_matrix& matrix, const char* name, int64_t bytes) {
  if (matrix.rows < 0 || matrix.rows > kMaxDimension || matrix.cols < 1 ||
      matrix.cols > kMaxDimension) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%s is %lld x %lld: rows must be 0 to %lld, columns 1 to %lld", name,
                show(matrix.rows), show(matrix.cols), show(kMaxDimension), show(kMaxDimension));
  }
  if (matrix.rows == 0) return BITIMPL_OK;
  if (matrix.rows > 1 && matrix.row_stride < matrix.cols) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%s has row_stride %lld for %lld columns: rows must be contiguous and not overlap",
                name, show(matrix.row_stride), show(matrix.cols));
  }
  if (matrix.data == nullptr || !aligned(matrix.data, bytes)) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%s lies at %p: pass data aligned to its elements of %lld bytes", name,
                matrix.data, show(bytes));
  }
  return BITIMPL_OK;
}

}  // namespace

const char* name_of_format(int32_t format) {
  switch (format) {
    case BITIMPL_BINARY: return "binary";
    case BITIMPL_TWO_BIT: return "two_bit";
    case BITIMPL_BASE3: return "base3";
    default: return nullptr;
  }
}

int64_t bytes_of_dtype(int32_t dtype) {
  switch (dtype) {
    case BITIMPL_F32: return 4;
    case BITIMPL_F16:
    case BITIMPL_BF16: return 2;
    default: return 0;
  }
}

bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

void clear_error() { last_error[0] = '\0'; }

int fail(bitimpl_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  failed_with = status;
  return status;
}

int last_status() { return failed_with; }

int check_weight(const bitimpl_weight* weight, bool with_scales) {
  if (weight == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "weight is null: pass a descriptor");
  }
  const bitimpl_weight& w = *weight;
  if (w.layout != BITIMPL_LAYOUT_V1) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "layout tag is %d, this library reads %d: pack the weight again", w.layout,
                BITIMPL_LAYOUT_V1);
  }
  if (name_of_format(w.format) == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "format is %d: use %d (binary), %d (two_bit) or %d (base3)", w.format,
                BITIMPL_BINARY, BITIMPL_TWO_BIT, BITIMPL_BASE3);
  }
  if (w.components < 1 || w.components > BITIMPL_MAX_COMPONENTS) {
    return fail(BITIMPL_INVALID_ARGUMENT, "components is %d: use 1 to %d", w.components,
                BITIMPL_MAX_COMPONENTS);
  }
  if (w.rows < 1 || w.rows > kMaxDimension || w.cols < 1 || w.cols > kMaxDimension) {
    return fail(BITIMPL_INVALID_ARGUMENT, "the weight is %lld x %lld: each side must be 1 to %lld",
                show(w.rows), show(w.cols), show(kMaxDimension));
  }
  if (w.group_size < 0 || w.group_size % 8 != 0) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "group_size is %lld: use 0 (no groups) or a positive multiple of 8",
                show(w.group_size));
  }
  if (w.codes == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "codes is null: pass the packed bytes");
  }
  const int64_t bytes = bitimpl_codes_bytes(w.format, w.components, w.rows, w.cols, w.group_size);
  if (bytes < 0) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%d x %lld x %lld weights take more bytes than can be addressed: use a smaller weight",
                w.components, show(w.rows), show(w.cols));
  }
  if (w.codes_bytes != bytes) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "codes hold %lld bytes, %s %d x %lld x %lld takes %lld: pass exactly these",
                show(w.codes_bytes), name_of_format(w.format), w.components, show(w.rows),
                show(w.cols), show(bytes));
  }
  return with_scales ? check_scales(w) : BITIMPL_OK;
}

int check_matrix(const bitimpl_matrix* matrix, const char* name) {
  if (matrix == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "%s is null: pass a matrix", name);
  }
  const int64_t bytes = bytes_of_dtype(matrix->dtype);
  if (bytes == 0) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%s has dtype %d: use %d (float32), %d (float16) or %d (bfloat16)", name,
                matrix->dtype, BITIMPL_F32, BITIMPL_F16, BITIMPL_BF16);
  }
  return check_rows(*matrix, name, bytes);
}

int check_matrix_or_signs(const bitimpl_matrix* matrix, const char* name) {
  if (matrix == nullptr || matrix->dtype != BITIMPL_SIGNS) return check_matrix(matrix, name);
  if (matrix->rows > 1 && matrix->row_stride % 8 != 0) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%s has row_stride %lld: rows of signs start on bytes, use a multiple of 8 bits", name,
                show(matrix->row_stride));
  }
  return check_rows(*matrix, name, 1);
}

int check_signs(const bitimpl_signs* signs, const char* family, bool x, bool y, int64_t rows,
                int32_t activation) {
  if (!x && !y) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "neither x nor y is of signs (dtype %d): call bitimpl_%s", BITIMPL_SIGNS, family);
  }
  if (signs == nullptr) {
    return fail(BITIMPL_INVALID_ARGUMENT, "signs is null: pass what goes with x or y of signs");
  }
  if (x && activation != BITIMPL_ACTIVATION_SIGN) {
    return fail(BITIMPL_INVALID_ARGUMENT, "activation is %d: x of signs takes %d (sign)", activation,
                BITIMPL_ACTIVATION_SIGN);
  }
  const struct {
    const float* values;
    bool used;
    const char* name;
  } fields[] = {{signs->x_scale, x && rows > 0, "x_scale"},
                {signs->lower, y, "lower"},
                {signs->upper, y, "upper"},
                {signs->least, y, "least"},
                {signs->most, y, "most"},
                {signs->y_scale, y && rows > 0, "y_scale"}};
  for (const auto& field : fields) {
    if (field.used && (field.values == nullptr || !aligned(field.values, 4))) {
      return fail(BITIMPL_INVALID_ARGUMENT, "%s of the signs lies at %p: pass aligned float32 values",
                  field.name, static_cast<const void*>(field.values));
    }
  }
  return BITIMPL_OK;
}

Operator operator_of(int32_t format) {
  return format == BITIMPL_BINARY ? Operator::kBinary : Operator::kTernary;
}

int64_t segment_of(const bitimpl_weight& w) {
  return w.group_size > 0 && w.group_size < w.cols ? w.group_size : w.cols;
}

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

int describe_packed(int32_t format, int32_t components, int64_t rows, int64_t cols, int64_t group_size,
                    const int8_t* codes, uint8_t* out, int64_t out_bytes, bitimpl_weight* packed) {
  *packed = {};
  packed->layout = BITIMPL_LAYOUT_V1;
  packed->format = format;
  packed->components = components;
  packed->rows = rows;
  packed->cols = cols;
  packed->group_size = group_size;
  packed->codes = out;
  packed->codes_bytes = out_bytes;
  const int status = check_weight(packed, false);
  return status == BITIMPL_OK ? check_codes(codes) : status;
}

int check_codes(const int8_t* codes) {
  if (codes != nullptr) return BITIMPL_OK;
  return fail(BITIMPL_INVALID_ARGUMENT, "codes is null: pass int8 [components, rows, cols]");
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

int check_tokens(const bitimpl_weight& w, int64_t tokens) {
  const double elements = static_cast<double>(tokens) * static_cast<double>(w.cols + 512);
  if (tokens < 0 || tokens > kMaxDimension || elements * 4.0 > kMaxWorkspace) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "%lld rows of %lld activations: rows must be at least 0 and small enough to address",
                show(tokens), show(w.cols));
  }
  return BITIMPL_OK;
}

int check_shapes(const bitimpl_weight& w, const bitimpl_matrix& x, const bitimpl_matrix& y) {
  if (x.cols != w.cols) {
    return fail(BITIMPL_INVALID_ARGUMENT, "x has %lld columns, the weight %lld: they must agree",
                show(x.cols), show(w.cols));
  }
  if (y.cols != w.rows || y.rows != x.rows) {
    return fail(BITIMPL_INVALID_ARGUMENT, "y is %lld x %lld: make it %lld x %lld", show(y.rows),
                show(y.cols), show(x.rows), show(w.rows));
  }
  return BITIMPL_OK;
}

}  // namespace bitimpl

using namespace bitimpl;

extern "C" {

const char* bitimpl_last_error(void) { return last_error; }

int64_t bitimpl_codes_bytes(int32_t format, int32_t components, int64_t rows, int64_t cols,
                            int64_t group_size) {
  const bool known =
      format == BITIMPL_BINARY || format == BITIMPL_TWO_BIT || format == BITIMPL_BASE3;
  if (!known || components < 1 || components > BITIMPL_MAX_COMPONENTS || rows < 1 ||
      rows > kMaxDimension || cols < 1 || cols > kMaxDimension || group_size < 0 ||
      group_size % 8 != 0)
    return -1;
  const Geometry g = geometry_of(format, components, rows, cols, group_size);
  const int64_t units = format == BITIMPL_BINARY ? rows : g.groups;
  const int64_t unit_bytes = format == BITIMPL_BINARY ? g.row_bytes : cols;
  int64_t bytes;  // components * units < 2^36: only the last product can leave int64
  return __builtin_mul_overflow(components * units, unit_bytes, &bytes) ? -1 : bytes;
}

}  // extern "C"
