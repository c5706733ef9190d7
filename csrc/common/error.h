// Argument checks shared by the entry points, and the message behind bitimpl_last_error().
#ifndef BITIMPL_COMMON_ERROR_H
#define BITIMPL_COMMON_ERROR_H

#include "../include/impl.h"

namespace bitimpl {

// Every entry point that can fail calls clear_error() first. fail() formats the message (value,
// limit, remedy; printf style) and returns `status`.
void clear_error();
int fail(bitimpl_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The status that this thread's last fail() returned.
int last_status();

// An int64 for printf's %lld.
static inline long long show(int64_t value) { return static_cast<long long>(value); }

// BITIMPL_OK, or fail(...) with the fault of a weight descriptor: layout tag, format, components,
// sizes, group size, code bytes, pointers. `with_scales` also checks the scale fields.
int check_weight(const bitimpl_weight* weight, bool with_scales);
// The same for a matrix of activations or results, called `name` in the message: type, sizes,
// stride, alignment; data may be null where there are no rows.
int check_matrix(const bitimpl_matrix* matrix, const char* name);

}  // namespace bitimpl

#endif  // BITIMPL_COMMON_ERROR_H
