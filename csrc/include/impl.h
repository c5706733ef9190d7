/* bitimpl: kernels for binary, ternary and k-ternary layers behind a plain C interface.
 *
 * Nothing here knows Python or torch. Every pointer is caller-owned, every buffer is sized by
 * the caller (see the *_workspace and *_bytes queries), no function allocates on behalf of the
 * caller, exits the process or throws across this border.
 *
 * Functions that return int return a bitimpl_status. On failure a message with the offending
 * value, the limit and the remedy is kept per thread: bitimpl_last_error().
 *
 * ---------------------------------------------------------------------------------------------
 * Packed layouts (layout tag BITIMPL_LAYOUT_V1)
 *
 * A weight matrix has `rows` output channels, `cols` input features and `components` terms
 * (1, or k of a k-ternary matrix). One layout per format serves every CPU and is what a
 * checkpoint holds.
 *
 * BITIMPL_BINARY      codes -1, +1                          1 bit per weight
 *   Row-major; every row of every component starts on a byte: row stride = ceil(cols / 8).
 *   Column k is bit k % 8 (least significant first) of byte k / 8; bit 1 is +1. Unused bits of
 *   the last byte are 0. Component c follows component c - 1.
 *   bytes = components * rows * ceil(cols / 8)
 *
 * BITIMPL_TWO_BIT     codes -1, 0, +1 stored as 0, 1, 2     2 bits per weight
 * BITIMPL_BASE3       codes -1, 0, +1 stored as 0, 1, 2     1.6 bits per weight
 *   P rows share a byte (P = 4 for two_bit, P = 5 for base3): the byte of row group g at column
 *   k holds the digits of rows g*P .. g*P + P - 1 at that column,
 *       two_bit   byte = sum_j digit_j << 2j          base3   byte = sum_j digit_j * 3^j
 *   so one load of 64 consecutive bytes carries P rows of 64 columns, and a masked digit needs
 *   no shift: it is the digit times 4^j, undone once per row at the end.
 *   Four row groups form a row block (16 or 20 rows). The last block may hold fewer groups, and
 *   its last group may hold fewer than P rows: missing rows carry the digit 1 (weight zero).
 *   A row is cut into segments (its scale groups; the whole row where there are none), a segment
 *   into steps of 64 columns; the last step of a segment may be shorter. In memory:
 *       for each block, for each component, for each segment, for each step, for each group of
 *       the block: the step's columns, one byte each.
 *   Hence a block is one contiguous stream and columns carry no padding.
 *   bytes = components * ceil(rows / P) * cols
 *
 * Scales are not part of the packed bytes. scale(c, n, g) is element
 *     c * scale_component_stride + n * scale_row_stride + g * scale_group_stride
 * of `scales`; a stride of 0 shares it (per tensor: row stride 0).
 *
 * ---------------------------------------------------------------------------------------------
 * Arithmetic
 *
 * With integer activations q (int8, int16 as two int8 passes, ternary, signs) the dot products are
 * exact integers for every rows, cols, M >= 1. The epilogue is float32, in this order and
 * without fused multiply-add, so that every instruction set, thread count and batch size gives
 * the same bits:
 *     t = 0;  for each component c, for each scale group g:  t = t + scale(c, n, g) * float(dot)
 *     y[m, n] = t * activation_scale[m] (+ bias[n]), rounded once to the output type
 * With float activations the sum over k is float32 in an unspecified order.
 *
 * Activation quantisation, per row of x, in float32:
 *   int8    amax = max(max|x|, 1e-5); q = clamp(round_half_even(x * (127 / amax)), -127, 127);
 *           activation_scale = amax / 127
 *   int16   the same with 32512 = 127 * 256 in place of 127; q = 256 * hi + lo with int8 hi, lo
 *   ternary delta = 0.75 * mean |x|, summed and multiplied in float64 and rounded once. (For normally
 *           distributed values the best threshold, 0.6 standard deviations, is 0.75 mean |x|: Li and
 *           Liu, Ternary weight networks, 2016, whose rule of thumb for weights is 0.7.) q = +1 where
 *           x > delta, -1 where x < -delta, else 0; activation_scale = mean |x| of the values whose q
 *           is not 0, summed in float64 and rounded once; 0 where there are none
 *   sign    q = x >= 0 ? +1 : -1 (so -0.0 is +1); activation_scale = mean |x|, summed in
 *           float64 and rounded once
 * A NaN or infinity in a row makes its activation_scale NaN, hence that row of y and no other.
 *
 * ---------------------------------------------------------------------------------------------
 * Convolution
 *
 * A weight [out_channels, in_channels / groups, *kernel] is packed as the matrix
 * [out_channels, taps * in_channels / groups]: the taps (positions of the kernel) outermost, in
 * row-major order, channels innermost. Its scales are per tensor or row: no scale groups.
 *
 * Activations are quantised per sample, over channels and space (a scale of each pixel could not
 * leave the sum over taps), by the rules above with these additions:
 *   int8, int16  where the convolution pads and padding_value is not 0, amax is at least 1, and
 *                added positions hold padding_value quantised with the sample's scale
 *   ternary, sign
 *                added positions hold padding_value: -1, +1, or 0, which counts for nothing. Means are
 *                of the sample, without added positions
 * The dot product runs over taps and channels, exact as above; then
 *     t = 0;  for each component c: t = t + scale(c, n) * float(dot)
 *     y[sample, n, position] = t * activation_scale[sample] (+ bias[n]), rounded once
 * A NaN or infinity in a sample makes that sample's y NaN and no other.
 *
 * ---------------------------------------------------------------------------------------------
 * Signs from operator to operator
 *
 * What stands between two binary layers, sign(batch_norm(y)) say, rises or falls with y in each
 * channel n: it is +1 in one interval of y. Of such a layer bitimpl_linear_signs and bitimpl_conv_signs
 * write the signs alone, a bit each, and take signs that one of them wrote:
 *     y is formed in float32 as above, without rounding to an output type;
 *     bit(m, n) = lower[n] <= y[m, n] <= upper[n] ? 1 (+1) : 0 (-1);
 *     scale[m] = 1, or NaN where least[n] <= y[m, n] <= most[n] fails for some n, as it does for NaN:
 *                the sign of what is not finite is not a number, and must not be one further on.
 * A matrix or image of signs has the dtype BITIMPL_SIGNS: channel c of a row (token or position) is
 * bit c % 8, least significant first, of the row's byte c / 8. Elements are bits: strides in elements are
 * multiples of 8, but for the channels', which is 1. Unused bits of a row's last byte are written as 0
 * and never looked at. With it goes its scale, float32, one for each row of a matrix or sample of an
 * image: such activations are q = +-1 with activation_scale = scale[m] (activation SIGN), and +-1 in
 * float with the scales of 1 would give the same y.
 */
#ifndef BITIMPL_H
#define BITIMPL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default) /* the library is built with hidden visibility */
#endif

#define BITIMPL_ABI_VERSION 4
#define BITIMPL_LAYOUT_V1 1
#define BITIMPL_MAX_COMPONENTS 16

typedef enum bitimpl_status {
  BITIMPL_OK = 0,
  BITIMPL_INVALID_ARGUMENT = 1, /* a size, pointer, tag or enum value is wrong */
  BITIMPL_UNSUPPORTED = 2,      /* valid, but no kernel here (operator, format or ISA) */
  BITIMPL_OUT_OF_MEMORY = 3
} bitimpl_status;

typedef enum bitimpl_format {
  BITIMPL_BINARY = 1,
  BITIMPL_TWO_BIT = 2,
  BITIMPL_BASE3 = 3
} bitimpl_format;

typedef enum bitimpl_dtype {
  BITIMPL_F32 = 0,
  BITIMPL_F16 = 1,
  BITIMPL_BF16 = 2,
  BITIMPL_SIGNS = 3 /* bits; of the x and y of bitimpl_linear_signs and bitimpl_conv_signs alone */
} bitimpl_dtype;

/* What the kernel does to the activations before the dot product. */
typedef enum bitimpl_activation {
  BITIMPL_ACTIVATION_FLOAT = 0,   /* none: float32 products straight from packed bytes */
  BITIMPL_ACTIVATION_SIGN = 1,    /* -1, +1 */
  BITIMPL_ACTIVATION_TERNARY = 2, /* -1, 0, +1 */
  BITIMPL_ACTIVATION_INT8 = 8,
  BITIMPL_ACTIVATION_INT16 = 16
} bitimpl_activation;

typedef struct bitimpl_weight {
  int32_t layout;      /* BITIMPL_LAYOUT_V1 */
  int32_t format;      /* bitimpl_format */
  int32_t components;  /* 1 .. BITIMPL_MAX_COMPONENTS */
  int32_t scale_dtype; /* BITIMPL_F32 or BITIMPL_F16 */
  int64_t rows;        /* output features N >= 1 */
  int64_t cols;        /* input features K >= 1 */
  int64_t group_size;  /* columns per scale group: 0 = no groups, else a positive multiple of 8;
                          the last group may be shorter */
  const uint8_t* codes;
  int64_t codes_bytes; /* exactly bitimpl_codes_bytes(...) */
  const void* scales;
  int64_t scale_component_stride; /* in elements */
  int64_t scale_row_stride;
  int64_t scale_group_stride;
} bitimpl_weight;

/* A row-major matrix whose rows are contiguous; row_stride in elements. */
typedef struct bitimpl_matrix {
  void* data;
  int32_t dtype; /* bitimpl_dtype */
  int32_t reserved;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
} bitimpl_matrix;

/* All arguments of a linear operator, for callers to whom each one costs (interpreters): the operator
 * is that of the weight's format. */
typedef struct bitimpl_linear_call {
  const bitimpl_weight* weight;
  bitimpl_matrix x;
  bitimpl_matrix y;
  const void* bias;
  int32_t bias_dtype; /* bitimpl_dtype */
  int32_t activation; /* bitimpl_activation */
  void* workspace;
  int64_t workspace_bytes;
} bitimpl_linear_call;

/* Samples x channels x positions; strides in elements. Always three spatial dimensions: an image
 * or a signal has leading ones. x: strides of at least 0; y: no two elements in one place. */
typedef struct bitimpl_image {
  void* data;
  int32_t dtype; /* bitimpl_dtype */
  int32_t reserved;
  int64_t samples;
  int64_t channels;
  int64_t size[3];
  int64_t sample_stride;
  int64_t channel_stride;
  int64_t spatial_stride[3];
} bitimpl_image;

/* What goes with x and y where they are BITIMPL_SIGNS ("Signs from operator to operator" above);
 * fields of the other kind of x or y are not looked at. */
typedef struct bitimpl_signs {
  const float* x_scale; /* [rows or samples of x] */
  const float* lower;   /* [output channels] each */
  const float* upper;
  const float* least;
  const float* most;
  float* y_scale; /* [rows or samples of y]: written */
} bitimpl_signs;

/* Where a convolution's kernel falls. Always three dimensions: leading ones have kernel, stride and
 * dilation 1 and no padding. */
typedef struct bitimpl_conv {
  int64_t groups;
  int64_t kernel[3];
  int64_t stride[3];
  int64_t dilation[3];
  int64_t padding_before[3]; /* positions added before and after each dimension */
  int64_t padding_after[3];
  int32_t padding_value; /* what they hold: -1, 0 or +1 */
  int32_t reserved;
} bitimpl_conv;

/* ---- library ------------------------------------------------------------------------------ */

int bitimpl_abi_version(void);
const char* bitimpl_last_error(void); /* "" when the thread's last call succeeded */

/* Instruction sets compiled in and usable on this machine, best first, comma separated:
 * of "avx512", "avx2", "neon_i8mm", "neon", "portable". neon is Armv8.2 Advanced SIMD with dot
 * products (FEAT_DotProd), neon_i8mm the same with int8 matrix products (FEAT_I8MM). */
const char* bitimpl_supported_isas(void);
/* The one in use. Chosen at load: the environment variable BITIMPL_ISA, else the best. A name
 * that BITIMPL_ISA gives and the machine lacks makes every operator and quantisation call fail
 * with a message that says so, and is answered with "". */
const char* bitimpl_isa(void);
/* Choose by name; NULL or "" restores the best. For tests and measurements. */
int bitimpl_select_isa(const char* name);
/* Threads the next call may use (the OpenMP pool shared with torch). */
int bitimpl_threads(void);
/* Name of the kernel that served this thread's last operator call, such as
 * "ternary_linear/base3/int8/gemv/avx512" or "binary_conv/binary/sign/gemm/avx2"; in place of gemv or
 * gemm, "planes": signs and zeros in planes of bits, or "depthwise": a convolution of single channels. */
const char* bitimpl_last_kernel(void);

/* Read `bytes` bytes once, with the threads an operator would use, and return the exclusive or of
 * their little-endian 64-bit words (the last one filled up with zeros): to measure with how fast
 * weights can come from memory. */
uint64_t bitimpl_read(const void* data, int64_t bytes);

/* Repeat the innermost instructions of the kernels on registers, `turns` times for each of the threads
 * an operator would use, and return the multiply-accumulates that were: to measure what the
 * processor can do at most. activation: INT8 or SIGN. 0 where the instruction set in use has no
 * such instructions (portable), -1 on error. */
int64_t bitimpl_multiply_accumulate(int32_t activation, int64_t turns);

/* ---- packing ------------------------------------------------------------------------------ */

/* Size of the packed bytes, or -1 where an argument is invalid. */
int64_t bitimpl_codes_bytes(int32_t format, int32_t components, int64_t rows, int64_t cols,
                            int64_t group_size);
/* codes: int8 [components, rows, cols], contiguous, values -1/+1 (binary) or -1/0/+1; any other
 * value is BITIMPL_INVALID_ARGUMENT. out: bitimpl_codes_bytes(...) bytes. */
int bitimpl_pack(int32_t format, int32_t components, int64_t rows, int64_t cols,
                 int64_t group_size, const int8_t* codes, uint8_t* out, int64_t out_bytes);
/* The inverse; ignores scales. codes: int8 [components, rows, cols]. */
int bitimpl_unpack(const bitimpl_weight* weight, int8_t* codes);
/* Float weights of rows [row_begin, row_end): out float32 [row_end - row_begin, cols]. */
int bitimpl_dequantize(const bitimpl_weight* weight, int64_t row_begin, int64_t row_end,
                       float* out, int64_t out_row_stride);

/* ---- activation quantisation -------------------------------------------------------------- */

/* q: int8 [x.rows, x.cols] contiguous; scale: float32 [x.rows]. */
int bitimpl_quantize_int8(const bitimpl_matrix* x, int8_t* q, float* scale);

/* ---- operators ---------------------------------------------------------------------------- */

/* Bytes of scratch an operator call needs for `rows` rows of activations, or -1. Any alignment.
 * Sized for bitimpl_threads(); a call with more threads than that uses as many as the bytes serve,
 * and fails only where they do not serve one. */
int64_t bitimpl_linear_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation);

/* y[M, N] = dequantized(weight)[N, K] applied to x[M, K], plus bias[N] (NULL for none).
 * x, y: any bitimpl_dtype each, M >= 0; bias: N elements of bias_dtype.
 * binary_linear takes format BINARY, ternary_linear TWO_BIT or BASE3, each with every activation and
 * any number of components in one pass over the activations. workspace_bytes >= bitimpl_linear_workspace(...).
 * Integer activations are exact for up to 2^24 - 1 columns a scale; more is
 * BITIMPL_UNSUPPORTED. */
int bitimpl_binary_linear(const bitimpl_weight* weight, const bitimpl_matrix* x,
                          int32_t activation, const void* bias, int32_t bias_dtype,
                          const bitimpl_matrix* y, void* workspace, int64_t workspace_bytes);
int bitimpl_ternary_linear(const bitimpl_weight* weight, const bitimpl_matrix* x,
                           int32_t activation, const void* bias, int32_t bias_dtype,
                           const bitimpl_matrix* y, void* workspace, int64_t workspace_bytes);

/* The one of the two that the weight's format asks for. */
int bitimpl_linear(const bitimpl_linear_call* call);

/* The same where x, y or both are BITIMPL_SIGNS. x of signs takes activation SIGN; its weight and
 * workspace are as for other x. */
int bitimpl_linear_signs(const bitimpl_linear_call* call, const bitimpl_signs* signs);

/* Bytes of scratch a convolution of images like x needs, or -1; x.data is not looked at. Threads as
 * in bitimpl_linear_workspace. */
int64_t bitimpl_conv_workspace(const bitimpl_weight* weight, const bitimpl_conv* conv,
                               const bitimpl_image* x, int32_t activation);

/* y = the convolution of x with the weight, plus bias[out_channels] (NULL for none).
 * y.samples = x.samples, y.channels = weight.rows and, in each dimension,
 *     y.size = (x.size + padding_before + padding_after - dilation * (kernel - 1) - 1) / stride + 1.
 * binary_conv takes format BINARY, ternary_conv TWO_BIT or BASE3, each with activation SIGN, TERNARY,
 * INT8 or INT16. FLOAT is BITIMPL_UNSUPPORTED: decode the weight with
 * bitimpl_dequantize and convolve in float. x, y: any bitimpl_dtype each, at least 0 samples. */
int bitimpl_binary_conv(const bitimpl_weight* weight, const bitimpl_conv* conv,
                        const bitimpl_image* x, int32_t activation, const void* bias,
                        int32_t bias_dtype, const bitimpl_image* y, void* workspace,
                        int64_t workspace_bytes);
int bitimpl_ternary_conv(const bitimpl_weight* weight, const bitimpl_conv* conv,
                         const bitimpl_image* x, int32_t activation, const void* bias,
                         int32_t bias_dtype, const bitimpl_image* y, void* workspace,
                         int64_t workspace_bytes);

/* The one of the two that the weight's format asks for, where x, y or both are BITIMPL_SIGNS. x of
 * signs takes activation SIGN. */
int bitimpl_conv_signs(const bitimpl_weight* weight, const bitimpl_conv* conv, const bitimpl_image* x,
                       int32_t activation, const void* bias, int32_t bias_dtype,
                       const bitimpl_image* y, const bitimpl_signs* signs, void* workspace,
                       int64_t workspace_bytes);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif /* BITIMPL_H */
