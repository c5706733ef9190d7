// What the entry points of all operators share: the description of a weight as a task, and the name of
// the kernel that served.
#ifndef BITIMPL_CPU_OPERATORS_H
#define BITIMPL_CPU_OPERATORS_H

#include <stdint.h>

#include "../common/checks.h"
#include "kernels.h"

namespace bitimpl {

int64_t block_rows_of(int32_t format);

// The weight's part of a task, without activations, bias and y.
LinearTask describe(const bitimpl_weight& w);

// Rows [begin, end) of the weight as a task of their own; `begin` is where a block may start.
LinearTask slice(const LinearTask& whole, int64_t begin, int64_t end);

// What goes with a y of signs.
void set_thresholds(const bitimpl_signs& signs, LinearTask* task);

// Work of an operator on the rows of the task's x (tokens, or output positions), in the
// multiply-accumulates that parallel.h counts: int8 products are the unit, float products run at about
// a quarter of their rate, bits at several times it. Of x only kind, form and rows count.
double operator_work(const LinearTask& task);

// Few pieces of work for the threads: into how many parts to cut `tokens` so that each thread finds
// two of the `pieces` times that many, but never into fewer tokens than a kernel works on at once.
int64_t token_parts(int64_t pieces, int64_t tokens, int threads);

// The first 64-byte boundary of a workspace that has 63 bytes to spare.
char* aligned_base(void* workspace);

// The float32 form of a checked bias (null for none), converted into `room` where it has to be.
const float* float_bias(const KernelTable& kernels, const void* bias, int32_t bias_dtype,
                        int64_t rows, float* room);

// Remembers what served this thread's last operator call, for bitimpl_last_kernel(). The strings
// are literals; of x the kind and the rows count. `form` null: the one for so many rows.
void record_served(const char* op, const char* format, const Activations& x, const char* isa,
                   const char* form);

}  // namespace bitimpl

#endif  // BITIMPL_CPU_OPERATORS_H
