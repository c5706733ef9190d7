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
//   SIGN          signs, or q[0] of -1 and +1 with sums[0]
//   TERNARY       signs and nonzero, counts; or q[0] of -1, 0 and +1 with sums[0]
// Of the two the one that KernelTable::takes_bits chooses; for convolutions, plan_conv().
struct Activations {
  int32_t kind;  // bitimpl_activation
  int32_t planes;  // int8 planes: 2 (INT16), 1 (INT8, and SIGN and TERNARY as bytes), else 0
  int32_t bit_planes;  // 1 (SIGN as bits), 2 (TERNARY as bits), else 0
  int64_t rows;  // M

  const float* values;     // row m at values + m * value_stride; nothing past column K may be read
  int64_t value_stride;    // in floats

  const int8_t* q[2];      // row m at q[p] + m * q_stride, zeros from column K to q_stride
  int64_t q_stride;        // in bytes, multiple of 64, >= round_up(K, 64) + 64: 64 bytes may be read
                           // from any column < K; odd multiple of 64 to spread rows over cache sets
  const int32_t* sums[2];  // sum of q over segment g of row m: sums[p][m * segments + g]

  const uint64_t* signs;   // row m at signs + m * sign_stride; bit k % 64 of word k / 64 is x >= 0,
  int64_t sign_stride;     // zeros after column K; in words, multiple of 8 (64 bytes)
  const uint64_t* nonzero; // the same for x ~ +-scale, zeros after column K; where that bit is 0 the
                           // one of `signs` is anything
  const int32_t* counts;   // ones of `nonzero` over segment g of row m: counts[m * segments + g]

  const float* scale;      // [M]; null for FLOAT. NaN marks a row with NaN or infinity

  // Of SIGN, for convolutions: what counts beside the signs in the dot product of row m with row n of
  // component c, outside[m][c * outside_stride + n], readable up to the end of the last row block of
  // the widest kernel (32 rows). Null, or a null entry: nothing.
  const int32_t* const* outside;
  int64_t outside_stride;
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

  // Where y is BITIMPL_SIGNS: as in bitimpl_signs, [N] each but for y_scale[M].
  const float* lower;
  const float* upper;
  const float* least;
  const float* most;
  float* y_scale;
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
// Row blocks that the kernels of large batches decode at once (panel.h).
constexpr int64_t kPanelBlocks = 4;

// Batches up to this size are served by the GEMV form of a kernel, larger ones by the GEMM form.
constexpr int64_t kGemvTokens = 4;

// A kernel computes every component, activation kind and batch size of its operator, epilogue
// included. Kernels do not allocate, do not thread and cannot fail: api.cpp has checked the task.
using LinearKernel = void (*)(const LinearTask& task, const Tile& tile);
// Bytes of scratch a call on any tile of this task needs; 0 is fine. It may depend on every field
// of the task but its pointers (which are null when only the size is asked for).
using ScratchQuery = int64_t (*)(const LinearTask& task);

// Depthwise convolutions (conv_depthwise.h) compute up to kDepthwiseRows channels of a token at a time,
// and read whole multiples of kDepthwiseLanes.
constexpr int64_t kDepthwiseLanes = 32;
constexpr int64_t kDepthwiseRows = 160;

// Where tokens find their taps, whose channels follow each other: at[plane][tap] + token * step[tap].
struct DepthwiseTaps {
  int64_t taps;
  const int8_t* const* at[2];
  const int64_t* step;
};

// int16 codes [components][taps][stride] and float32 scales [components][stride], zeros after the
// last channel.
struct DepthwiseWeights {
  const int16_t* codes;
  const float* scales;
  int64_t stride;
};

struct KernelTable {
  const char* isa;

  // Whether the kernels of this task take SIGN or TERNARY activations as bits, else as int8. A function
  // of the same fields as a scratch query, but for the planes of x, which follow from it.
  bool (*takes_bits)(const LinearTask& task);

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
  // Sum |x| in float64, in a fixed order.
  double (*sum_magnitudes)(const float* x, int64_t n);
  // Bit k is x[k] >= 0; writes ceil(n / 64) words. Returns sum |x| as above.
  double (*pack_signs)(const float* x, int64_t n, uint64_t* signs);
  // The same, and bit k of `nonzero` is |x[k]| > threshold (never for NaN); the sum is of those alone.
  double (*pack_ternary)(const float* x, int64_t n, float threshold, uint64_t* signs,
                         uint64_t* nonzero);
  // q[k] = 0 where bit k of `nonzero` (null: all ones) is 0, else +1 or -1 as the bit of `signs` is 1
  // or 0; reads only bytes that hold one of the n bits. Returns the sum of q.
  int32_t (*spread_bits)(const uint8_t* signs, const uint8_t* nonzero, int64_t n, int8_t* q);

  // For convolutions (conv_rows.h).
  // sums[i] = the sum of n bytes at q + i * stride, n a multiple of 64, for i < rows.
  void (*sum_int8)(const int8_t* q, int64_t stride, int64_t n, int64_t rows, int32_t* sums);
  // Ones among `count` bits from bit `first` on; reads only bytes that hold one of them.
  int64_t (*count_ones)(const uint8_t* bits, int64_t first, int64_t count);
  // out[c * out_stride + r] = in[r * in_stride + c] for r < rows, c < cols, elements of
  // element_bytes 1, 2 or 4; strides in elements.
  void (*transpose)(const void* in, int64_t in_stride, int64_t rows, int64_t cols, void* out,
                    int64_t out_stride, int64_t element_bytes);
  // The same for 64 x 64 bits: bit r of out[c] is bit c of in[r].
  void (*transpose_bits)(const uint64_t in[64], uint64_t out[64]);
  // y of `tokens` tokens from `token` on, the first one at token 0 of x: the task's rows, at most
  // kDepthwiseRows, are the channels. Of the task neither codes, nor scales, nor q are looked at.
  void (*depthwise)(const LinearTask& task, const DepthwiseTaps& x, const DepthwiseWeights& weights,
                    int64_t token, int64_t tokens);

  // `turns` turns of the innermost instructions (peak_<isa>.cpp): the multiply-accumulates done.
  int64_t (*int8_peak)(int64_t turns);
  int64_t (*sign_peak)(int64_t turns);
};

// Kernels of each operator, defined in ternary_<isa>.cpp and binary_linear_<isa>.cpp;
// table_<isa>.cpp assembles them. Only those that were compiled exist. Both hand integer
// activations of large batches to panel_<isa>.cpp, where there is one: panel_serves_*() depends on
// nothing that a workspace query does not know. bit_panel_<isa>.cpp serves activations that come as
// bits, but for SIGN over binary weights, which the kernels of the operator do.
#define BITIMPL_DECLARE_KERNELS(isa)                         \
  void ternary_##isa(const LinearTask& task, const Tile& tile); \
  int64_t ternary_scratch_##isa(const LinearTask& task);     \
  void binary_##isa(const LinearTask& task, const Tile& tile);  \
  int64_t binary_scratch_##isa(const LinearTask& task);      \
  bool takes_bits_##isa(const LinearTask& task);             \
  int64_t int8_peak_##isa(int64_t turns);                    \
  int64_t sign_peak_##isa(int64_t turns);                    \
  const KernelTable& kernels_##isa();

#define BITIMPL_DECLARE_PANELS(isa)                          \
  bool panel_serves_##isa(const LinearTask& task);           \
  int64_t panel_scratch_##isa(const LinearTask& task);       \
  void panel_##isa(const LinearTask& task, const Tile& tile);

#define BITIMPL_DECLARE_BIT_PANELS(isa)                      \
  int64_t bit_panel_scratch_##isa(const LinearTask& task);   \
  void bit_panel_##isa(const LinearTask& task, const Tile& tile);

BITIMPL_DECLARE_KERNELS(portable)
BITIMPL_DECLARE_KERNELS(avx2)
BITIMPL_DECLARE_KERNELS(avx512)
BITIMPL_DECLARE_KERNELS(neon)
BITIMPL_DECLARE_KERNELS(neon_i8mm)
BITIMPL_DECLARE_PANELS(avx2)
BITIMPL_DECLARE_PANELS(avx512)
BITIMPL_DECLARE_PANELS(neon)
BITIMPL_DECLARE_PANELS(neon_i8mm)
BITIMPL_DECLARE_BIT_PANELS(avx2)
BITIMPL_DECLARE_BIT_PANELS(avx512)
BITIMPL_DECLARE_BIT_PANELS(neon)

// SIGN over binary weights: the form that every instruction set's kernels take.
static inline bool is_sign_product(const LinearTask& task) {
  return task.x.kind == BITIMPL_ACTIVATION_SIGN && task.format == BITIMPL_BINARY;
}
// Whether bit_panel_<isa>.cpp serves.
static inline bool bit_panel_serves(const LinearTask& task) {
  return task.x.bit_planes > 0 && !is_sign_product(task);
}

#undef BITIMPL_DECLARE_KERNELS
#undef BITIMPL_DECLARE_PANELS
#undef BITIMPL_DECLARE_BIT_PANELS

}  // namespace bitimpl

#endif  // BITIMPL_CPU_KERNELS_H
