/* bitimpl on CUDA devices: the operators of impl.h for tensors in device memory.
 *
 * Layouts, arithmetic, descriptors and status codes are those of impl.h, which this header extends; with
 * integer activations results are the same bits (NaN aside) as on the CPU where a row has one scale a component, and
 * otherwise differ by the order in which the products of scale and dot product are added.
 *
 * Every pointer inside a descriptor (codes, scales, x, y, bias, workspace) is one of the device's memory; the
 * descriptors themselves lie on the host and are read before the call returns. Calls put their work into
 * `stream` (a cudaStream_t of that device, null for its default stream) and return: nothing waits, nothing
 * allocates, so that a call can be captured into a CUDA graph. Calls of one thread and of several are
 * independent; two calls in flight must not share a workspace.
 *
 * libbitimpl_cuda.so also answers bitimpl_last_error and bitimpl_codes_bytes, for itself.
 */
#ifndef BITIMPL_CUDA_H
#define BITIMPL_CUDA_H

#include "impl.h"

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

#define BITIMPL_CUDA_ABI_VERSION 2

/* ---- library ------------------------------------------------------------------------------ */

int bitimpl_cuda_abi_version(void);
/* The toolkit it was built with, 1000 * major + 10 * minor, and the architectures it holds code for, comma
 * separated ("80,86,89,90a"; "emulated" where it runs on the host). */
int bitimpl_cuda_toolkit(void);
const char* bitimpl_cuda_architectures(void);
/* Version of the CUTLASS that the kernel "cutlass" was built with, such as "4.2.0"; "" where it was not built,
 * "emulated" where it runs on the host. */
const char* bitimpl_cuda_cutlass(void);

typedef struct bitimpl_cuda_device {
  int32_t architecture; /* 10 * major + minor */
  int32_t multiprocessors;
  int64_t shared_bytes; /* shared memory one block can have */
} bitimpl_cuda_device;

/* Devices that can be used; 0 where there is no driver or GPU, with the reason in bitimpl_last_error(). */
int bitimpl_cuda_devices(void);
int bitimpl_cuda_describe(int32_t device, bitimpl_cuda_device* out);

/* Kernels compiled in, comma separated: of "gemv" (few tokens), "popcount" and "binary_gemv" (few tokens of binary
 * weights: signs, integers), "small_batch", "gemm" and "bmma" (mma.sync of bytes and of bits, any architecture),
 * "wgmma" and "bgmma" (sm_90a: products of bytes and of bits), "float" (activations as they are), "cutlass"
 * (products of signs by CUTLASS, where that was there to build with), "any" (every shape, no speed promised). */
const char* bitimpl_cuda_kernels(void);
/* Choose by name for this thread's calls; NULL or "": the library's own choice. A call the chosen kernel
 * cannot serve fails with BITIMPL_UNSUPPORTED. For tests and measurements. */
int bitimpl_cuda_select_kernel(const char* name);
/* Try a kernel first for this thread's calls: where it may not serve (it was left out, or is not trusted) or cannot,
 * the library's own choice does, as for NULL or "". A kernel chosen by name comes before. */
int bitimpl_cuda_prefer_kernel(const char* name);
/* Leave a kernel out of the library's own choice on a device, in the whole process and for good: one that
 * a check has found wrong there. Chosen by name it still runs. */
int bitimpl_cuda_avoid(const char* kernel, int32_t device);
/* Let the library choose by itself, in the whole process and for good, a kernel that tests without a GPU cannot
 * execute: "wgmma", "bgmma" or "cutlass", once a GPU has run it against the reference. Chosen by name it runs
 * without. */
int bitimpl_cuda_trust(const char* kernel);
/* What served this thread's last operator call, such as "ternary_linear/base3/int8/gemv/sm_90". */
const char* bitimpl_cuda_last_kernel(void);

/* ---- operators ----------------------------------------------------------------------------
 *
 * What the functions that size a workspace say holds for calls with a weight whose codes lie at the same address (its
 * alignment may decide on how much it takes), and while what chooses kernels stays as it is: the thread's choice and
 * preference, bitimpl_cuda_avoid, bitimpl_cuda_trust. */

/* Bytes of workspace, any alignment, or -1. */
int64_t bitimpl_cuda_linear_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation,
                                      int32_t device);
/* bitimpl_linear of impl.h: every format and activation, any number of components. */
int bitimpl_cuda_linear(const bitimpl_linear_call* call, int32_t device, void* stream);
/* bitimpl_linear_signs of impl.h, every format and activation, with a workspace of its own, which serves
 * whatever x and y are of. */
int64_t bitimpl_cuda_linear_signs_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation,
                                            int32_t device);
int bitimpl_cuda_linear_signs(const bitimpl_linear_call* call, const bitimpl_signs* signs, int32_t device,
                              void* stream);

/* All arguments of a convolution (bitimpl_binary_conv, bitimpl_ternary_conv and, where x, y or both are of
 * signs, bitimpl_conv_signs of impl.h). */
typedef struct bitimpl_cuda_conv_call {
  const bitimpl_weight* weight;
  const bitimpl_conv* conv;
  bitimpl_image x;
  bitimpl_image y;
  const void* bias;
  int32_t bias_dtype; /* bitimpl_dtype */
  int32_t activation; /* bitimpl_activation: SIGN, TERNARY, INT8, INT16 */
  const bitimpl_signs* signs; /* null: neither x nor y is of signs */
  void* workspace;
  int64_t workspace_bytes;
} bitimpl_cuda_conv_call;

/* Bytes of workspace, any alignment, or -1; data of x and y, signs and workspace may be null. Convolutions
 * whose windows are gathered for the linear kernels ("gather+gemm" and its like in bitimpl_cuda_last_kernel) do that
 * in chunks, as large as the workspace a call is given holds: they work with less than this, and fail only where
 * it does not hold 16 positions of y. By the names of the linear kernels ("wgmma", "gemm", "small_batch", "gemv")
 * bitimpl_cuda_select_kernel chooses those, by "any" a kernel that goes without. */
int64_t bitimpl_cuda_conv_workspace(const bitimpl_cuda_conv_call* call, int32_t device);
int bitimpl_cuda_conv(const bitimpl_cuda_conv_call* call, int32_t device, void* stream);

/* ---- packing ------------------------------------------------------------------------------ */

/* As bitimpl_pack, bitimpl_unpack and bitimpl_dequantize, except that codes beyond -1 .. 1 are not noticed
 * (that would have to wait for the device): they become the digit of their sign; nor are bytes that no
 * weight has, which unpack to anything. out: float32, float16 or bfloat16 elements. Every format. */
int bitimpl_cuda_pack(int32_t format, int32_t components, int64_t rows, int64_t cols, int64_t group_size,
                      const int8_t* codes, uint8_t* out, int64_t out_bytes, int32_t device, void* stream);
int bitimpl_cuda_unpack(const bitimpl_weight* weight, int8_t* codes, int32_t device, void* stream);
int bitimpl_cuda_dequantize(const bitimpl_weight* weight, int64_t row_begin, int64_t row_end, void* out,
                            int32_t out_dtype, int64_t out_row_stride, int32_t device, void* stream);

/* q: int8 [x.rows, x.cols] contiguous; scale: float32 [x.rows]. */
int bitimpl_cuda_quantize_int8(const bitimpl_matrix* x, int8_t* q, float* scale, int32_t device, void* stream);

/* Where the scales of signs come from. Means are summed in float64, in an order that the size of x alone decides, and
 * rounded once to float32. */
typedef enum bitimpl_cuda_sign_scale {
  BITIMPL_SIGN_SCALE_GIVEN = 0, /* `given`, or 1 where that is null */
  BITIMPL_SIGN_SCALE_TOKEN = 1, /* mean |x| of the row */
  BITIMPL_SIGN_SCALE_TENSOR = 2 /* mean |x| of all rows, the same for each */
} bitimpl_cuda_sign_scale;

/* Floats into signs and their scales, as bitimpl_cuda_linear_signs takes them: bit 1 where x + bias >= 0, in float32.
 * What is not finite has no sign: a NaN or infinity in x or in x + bias makes the scale of its row (TENSOR: of every
 * row) NaN, and the bits of that row mean nothing. */
typedef struct bitimpl_cuda_binarize_call {
  bitimpl_matrix x;    /* [rows, cols], float32, float16 or bfloat16 */
  const void* bias;    /* [cols], null: none; it is added before the sign, not to mean |x| */
  int32_t bias_dtype;  /* bitimpl_dtype */
  int32_t rule;        /* bitimpl_cuda_sign_scale */
  const float* given;  /* [1], on the device */
  bitimpl_matrix signs; /* out: [rows, cols] of BITIMPL_SIGNS */
  float* scale;        /* out: [rows] */
  void* workspace;
  int64_t workspace_bytes;
} bitimpl_cuda_binarize_call;

/* Bytes of workspace, any alignment (0 but for TENSOR), or -1. */
int64_t bitimpl_cuda_binarize_workspace(int64_t rows, int32_t rule);
int bitimpl_cuda_binarize(const bitimpl_cuda_binarize_call* call, int32_t device, void* stream);

/* ---- training ----------------------------------------------------------------------------- */

/* How a line of latent weights (the whole tensor, a row, or a scale group of a row) becomes codes and a scale.
 * Ternary rules: code = sign(w) where |w| > threshold, else 0. Means are summed in float64, in an order that is the
 * same on every device, and rounded once to float32.
 *   absmean  scale = max(mean |w|, 1e-5), threshold = scale / 2 (b1.58: round(w / scale) to even, -1 .. 1)
 *   absmax   scale = max |w|, threshold = scale / 2
 *   twn      threshold = 0.7 mean |w|, scale = mean |w| of the weights beyond it, 0 where there are none
 * Binary:
 *   sign     code = +1 where w >= 0 (also at -0.0), else -1, scale = mean |w|
 * A line with a NaN or infinity gets a scale that is NaN or infinity too; its ternary codes are 0 where |w| is not
 * beyond the threshold, the code of a NaN is 0 (sign: -1). */
typedef enum bitimpl_latent_rule {
  BITIMPL_RULE_ABSMEAN = 0,
  BITIMPL_RULE_ABSMAX = 1,
  BITIMPL_RULE_TWN = 2,
  BITIMPL_RULE_SIGN = 3
} bitimpl_latent_rule;

/* Latent weights into packed codes and scales, in one go: what a training step does once, before the forward
 * pass; its codes and scales then serve bitimpl_cuda_linear and bitimpl_cuda_input_grad until the weights
 * change. */
typedef struct bitimpl_cuda_latent_call {
  bitimpl_matrix latent; /* [rows, cols], any bitimpl_dtype */
  int32_t rule;          /* bitimpl_latent_rule */
  int32_t per_tensor;    /* 1: one scale for all, and group_size 0; 0: one for each row and scale group */
  int32_t format;        /* TWO_BIT or BASE3, with the rule sign BINARY; one component */
  int32_t reserved;
  int64_t group_size;
  uint8_t* codes;        /* out: bitimpl_codes_bytes(...) bytes */
  int64_t codes_bytes;
  float* scales;         /* out: [1], or [rows, scale groups] */
  uint8_t* mask;         /* out: the mask of the estimator "clip", bit 1 where |w| <= 1, packed as a BINARY
                            weight [rows, cols]; null: none */
  void* workspace;
  int64_t workspace_bytes;
} bitimpl_cuda_latent_call;

/* Bytes of workspace, any alignment: 0 unless per_tensor, -1 where rows are not those of a weight. */
int64_t bitimpl_cuda_quantize_weight_workspace(int64_t rows, int32_t per_tensor);
int bitimpl_cuda_quantize_weight(const bitimpl_cuda_latent_call* call, int32_t device, void* stream);

/* grad, in place: 0 where the mask of bitimpl_cuda_quantize_weight has the bit 0. */
int bitimpl_cuda_apply_mask(const uint8_t* mask, const bitimpl_matrix* grad, int32_t device, void* stream);

/* dx [M, K] = dy [M, N] times the decoded weight [N, K], the gradient of bitimpl_cuda_linear towards x, with
 * int8 products that are exact. For each scale group g of columns, in float32 without fused multiply-add:
 *     t = 0;  for each component c:
 *       v[n] = dy[m, n] * scale(c, n, g);  amax = max(max |v|, 1e-36)
 *       q[n] = round_half_even(v[n] * (127 / amax));  t = t + (amax / 127) * float(sum q[n] * code(c, n, k))
 *     dx[m, k] = t rounded once to its type
 * A row of dy with a NaN or infinity makes that row of dx NaN and no other. dy, dx: any bitimpl_dtype each;
 * weights of any format with up to 2^24 - 1 rows. Bytes of workspace, any alignment, or -1. */
int64_t bitimpl_cuda_input_grad_workspace(const bitimpl_weight* weight, int64_t rows);
int bitimpl_cuda_input_grad(const bitimpl_weight* weight, const bitimpl_matrix* dy, const bitimpl_matrix* dx,
                            void* workspace, int64_t workspace_bytes, int32_t device, void* stream);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif /* BITIMPL_CUDA_H */
