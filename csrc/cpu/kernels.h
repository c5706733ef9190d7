// The border between the instruction-set independent half of the library (api.cpp, parallel.cpp,
// pack.cpp) and the kernels, which are compiled once per instruction set.
//
// Plain structs and function pointers only. A file that is compiled for one instruction set uses
// no STL and keeps every function but its kernels_*() accessor in an anonymous namespace: were a
// shared inline function emitted twice, the linker could keep the copy an older CPU cannot run.
#ifndef BITIMPL_CPU_KERNELS_H
#define BITIMPL_CPU_KERNELS_H

#include <stdint.h>

#include "../include/impl.h"

namespace bitimpl {

// Activations after preparation (see quantize.h). Exactly one form is filled:
//   FLOAT         values
//   INT8          q[0], sums[0]
//   INT16         q[0] = hi, q[1] = lo with x ~ 256 * hi + lo; sums[0], sums[1]
//   SIGN          signs
struct Activations {
  int32_t kind;  // bitimpl_activation
  int32_t planes;  // int8 planes: 1 (INT8), 2 (INT16), else 0
  int64_t rows;  // M

  const float* values;     // row m at values + m * value_stride; nothing past column K may be read
  int64_t value_stride;    // in floats

  const int8_t* q[2];      // row m at q[p] + m * q_stride, zeros from column K to q_stride
  int64_t q_stride;        // in bytes, multiple of 64, >= round_up(K, 64) + 64: 64 bytes may be read
                           // from any column < K; odd multiple of 64 to spread rows over cache sets
  const int32_t* sums[2];  // sum of q over segment g of row m: sums[p][m * segments + g]

  const uint64_t* signs;   // row m at signs + m * sign_stride; bit k % 64 of word k / 64 is x >= 0,
  int64_t sign_stride;     // zeros after column K; in words, multiple of 8 (64 bytes)

  const float* scale;      // [M]; null for FLOAT. NaN marks a row with NaN or infinity
};

// One operator call, ready to run. `segments` and `segment` describe the scale groups: a matrix
// without groups is one segment of `cols` columns; the last segment may be shorter.
struct LinearTask {
  int32_t format;  // bitimpl_format
  int32_t components;
  int64_t rows;  // N
  int64_t cols;  // K
  int64_t stored_rows;  // of the matrix this task is cut from: binary components lie so far apart
  int64_t segment;
  int64_t segments;
  const uint8_t* codes;

  const void* scales;
  int32_t scale_dtype;  // BITIMPL_F32 or BITIMPL_F16
  int64_t scale_component_stride;
  int64_t scale_row_stride;
  int64_t scale_group_stride;

  Activations x;

  const float* bias;  // [N], float32 whatever the caller's type; null for none
  void* y;            // [M, N]
  int32_t y_dtype;
  int64_t y_stride;  // in elements
};

// The part of a task one call of a kernel computes: row blocks x tokens. A row block is
// 16 rows (two_bit), 20 rows (base3) or 16 rows (binary); the last block may be shorter.
struct Tile {
  int64_t block_begin, block_end;
  int64_t token_begin, token_end;
  void* scratch;  // 64-byte aligned, as large as the kernel's scratch query, this thread's alone
};

constexpr int64_t kBinaryBlockRows = 16;
constexpr int64_t kTwoBitBlockRows = 16;
constexpr int64_t kBase3BlockRows = 20;

// Batches up to this size are served by the GEMV form of a kernel, larger ones by the GEMM form.
constexpr int64_t kGemvTokens = 4;

// A kernel computes every component, activation kind and batch size of its operator, epilogue
// included. Kernels do not allocate, do not thread and cannot fail: api.cpp has checked the task.
using LinearKernel = void (*)(const LinearTask& task, const Tile& tile);
// Bytes of scratch a call on any tile of this task needs; 0 is fine. It may depend on every field
// of the task but its pointers (which are null when only the size is asked for).
using ScratchQuery = int64_t (*)(const LinearTask& task);

struct KernelTable {
  const char* isa;

  LinearKernel ternary;
  ScratchQuery ternary_scratch;
  LinearKernel binary;
  ScratchQuery binary_scratch;

  // Activation preparation (quantize_rows.h), on pieces of a row that quantize.cpp chooses.
  // n elements of bitimpl_dtype `dtype` to float32, exactly.
  void (*to_float)(const void* x, int32_t dtype, int64_t n, float* out);
  // max |x| as the bits of a float32; 0x7f800000 or more where x holds a NaN or infinity.
  uint32_t (*max_magnitude)(const float* x, int64_t n);
  // round_half_even(x * inverse), for |x * inverse| <= 127 (int8) or 32512 (int16, q = 256 * hi +
  // lo). Returns the sums of q, of hi and lo.
  int32_t (*round_int8)(const float* x, int64_t n, float inverse, int8_t* q);
  void (*round_int16)(const float* x, int64_t n, float inverse, int8_t* hi, int8_t* lo,
                      int32_t sums[2]);
  // Bit k is x[k] >= 0; writes ceil(n / 64) words. Returns sum |x| in float64, in a fixed order.
  double (*pack_signs)(const float* x, int64_t n, uint64_t* signs);

  // For convolutions (conv_rows.h).
  // Sum of n bytes, n a multiple of 64.
  int32_t (*sum_int8)(const int8_t* q, int64_t n);
  // Ones among `count` bits from bit `first` on; reads only bytes that hold one of them.
  int64_t (*count_ones)(const uint8_t* bits, int64_t first, int64_t count);
  // out[c * out_stride + r] = in[r * in_stride + c] for r < rows, c < cols, elements of
  // element_bytes 1, 2 or 4; strides in elements.
  void (*transpose)(const void* in, int64_t in_stride, int64_t rows, int64_t cols, void* out,
                    int64_t out_stride, int64_t element_bytes);
  // The same for 64 x 64 bits: bit r of out[c] is bit c of in[r].
  void (*transpose_bits)(const uint64_t in[64], uint64_t out[64]);
  // total = (first ? 0 : total) + scale * (dot + outside); null `outside` for zeros.
  void (*add_scaled)(const float* dot, const int32_t* outside, const float* scale, int64_t n,
                     bool first, float* total);
  // store_rows of epilogue.h: y[token, row_begin .. row_begin + count) of the task from t.
  void (*store_rows)(const LinearTask& task, int64_t token, int64_t row_begin, int64_t count,
                     const float* t);

  // `turns` turns of the innermost instructions (peak_<isa>.cpp): the multiply-accumulates done.
  int64_t (*int8_peak)(int64_t turns);
  int64_t (*sign_peak)(int64_t turns);
};

// Kernels of each operator, defined in ternary_<isa>.cpp and binary_linear_<isa>.cpp;
// table_<isa>.cpp assembles them. Only those that were compiled exist. Both hand integer
// activations of large batches to panel_<isa>.cpp, where there is one: panel_serves_*() depends on
// nothing that a workspace query does not know.
#define BITIMPL_DECLARE_KERNELS(isa)                         \
  void ternary_##isa(const LinearTask& task, const Tile& tile); \
  int64_t ternary_scratch_##isa(const LinearTask& task);     \
  void binary_##isa(const LinearTask& task, const Tile& tile);  \
  int64_t binary_scratch_##isa(const LinearTask& task);      \
  int64_t int8_peak_##isa(int64_t turns);                    \
  int64_t sign_peak_##isa(int64_t turns);                    \
  const KernelTable& kernels_##isa();

#define BITIMPL_DECLARE_PANELS(isa)                          \
  bool panel_serves_##isa(const LinearTask& task);           \
  int64_t panel_scratch_##isa(const LinearTask& task);       \
  void panel_##isa(const LinearTask& task, const Tile& tile);

BITIMPL_DECLARE_KERNELS(portable)
BITIMPL_DECLARE_KERNELS(avx2)
BITIMPL_DECLARE_KERNELS(avx512)
BITIMPL_DECLARE_KERNELS(neon)
BITIMPL_DECLARE_KERNELS(neon_i8mm)
BITIMPL_DECLARE_PANELS(avx2)
BITIMPL_DECLARE_PANELS(avx512)
BITIMPL_DECLARE_PANELS(neon)
BITIMPL_DECLARE_PANELS(neon_i8mm)

#undef BITIMPL_DECLARE_KERNELS
#undef BITIMPL_DECLARE_PANELS

}  // namespace bitimpl

#endif  // BITIMPL_CPU_KERNELS_H
