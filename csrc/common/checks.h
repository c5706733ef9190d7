// Checks of arguments, the same for every device, with the words and limits they use.
#ifndef BITIMPL_COMMON_CHECKS_H
#define BITIMPL_COMMON_CHECKS_H

#include <stdint.h>

#include "error.h"

namespace bitimpl {

enum class Operator { kBinary, kTernary };

// The longest side of a matrix: products of sizes stay far from overflowing int64.
constexpr int64_t kMaxDimension = INT32_MAX;
// Workspaces and tensors beyond this many bytes are refused: sizes stay far from overflowing int64.
constexpr double kMaxWorkspace = 1e15;

const char* name_of_format(int32_t format);          // null where the value is unknown
const char* name_of_activation(int32_t activation);  // null where the value is unknown
int64_t bytes_of_dtype(int32_t dtype);               // 0 where the value is unknown
bool aligned(const void* pointer, int64_t bytes);

Operator operator_of(int32_t format);
int64_t segment_of(const bitimpl_weight& w);  // columns that share a scale

// BITIMPL_OK where the operator takes the weight's format and the format the activation, else
// fail(...). `family` is "linear" or "conv".
int check_operator(Operator op, const char* family, const bitimpl_weight& w, int32_t activation);
int check_codes(const int8_t* codes);  // of packing and unpacking
// The descriptor of what packing makes, and its check with the messages of any weight.
int describe_packed(int32_t format, int32_t components, int64_t rows, int64_t cols, int64_t group_size,
                    const int8_t* codes, uint8_t* out, int64_t out_bytes, bitimpl_weight* packed);
int check_bias(const void* bias, int32_t bias_dtype);
// As check_matrix, of a matrix that may be one of signs.
int check_matrix_or_signs(const bitimpl_matrix* matrix, const char* name);
// That x, y or both are signs, and that what goes with them is there: scales where there are `rows`.
// `family` is "linear" or "conv".
int check_signs(const bitimpl_signs* signs, const char* family, bool x, bool y, int64_t rows,
                int32_t activation);
// That so many rows of activations can be addressed.
int check_tokens(const bitimpl_weight& w, int64_t tokens);
// That y is a product of x and the weight.
int check_shapes(const bitimpl_weight& w, const bitimpl_matrix& x, const bitimpl_matrix& y);

}  // namespace bitimpl

#endif  // BITIMPL_COMMON_CHECKS_H
