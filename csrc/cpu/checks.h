// Words and limits of the argument checks in checks.cpp and api.cpp.
#ifndef BITIMPL_CPU_CHECKS_H
#define BITIMPL_CPU_CHECKS_H

#include <stdint.h>

#include "error.h"

namespace bitimpl {
namespace {

// The longest side of a matrix: products of sizes stay far from overflowing int64.
constexpr int64_t kMaxDimension = INT32_MAX;

// An int64 for printf's %lld.
[[maybe_unused]] inline long long show(int64_t value) { return static_cast<long long>(value); }

}  // namespace

const char* name_of_format(int32_t format);  // null where the value is unknown
int64_t bytes_of_dtype(int32_t dtype);       // 0 where the value is unknown
bool aligned(const void* pointer, int64_t bytes);

}  // namespace bitimpl

#endif  // BITIMPL_CPU_CHECKS_H
