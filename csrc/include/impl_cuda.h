/* bitimpl on CUDA devices: the operators of impl.h for tensors in device memory.
 *
 * Layouts, arithmetic, descriptors and status codes are those of impl.h, which this header extends; with
 * integer activations results are the same bits as on the CPU where a row has one scale a component, and
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

#define BITIMPL_CUDA_ABI_VERSION 1

/* ---- library ------------------------------------------------------------------------------ */

int bitimpl_cuda_abi_version(void);
/* The toolkit it was built with, 1000 * major + 10 * minor, and the architectures it holds code for, comma
 * separated ("80,86,89,90a"; "emulated" where it runs on the host). */
int bitimpl_cuda_toolkit(void);
const char* bitimpl_cuda_architectures(void);

typedef struct bitimpl_cuda_device {
  int32_t architecture; /* 10 * major + minor */
  int32_t multiprocessors;
  int64_t shared_bytes; /* shared memory one block can have */
} bitimpl_cuda_device;

/* Devices that can be used; 0 where there is no driver or GPU, with the reason in bitimpl_last_error(). */
int bitimpl_cuda_devices(void);
int bitimpl_cuda_describe(int32_t device, bitimpl_cuda_device* out);

/* Kernels of the linear operators compiled in, comma separated: of "gemv" (few tokens), "small_batch",
 * "gemm" (mma.sync, any architecture), "wgmma" (sm_90a), "float" (activations as they are), "any" (every
 * shape, no speed promised). */
const char* bitimpl_cuda_kernels(void);
/* Choose by name for this thread's calls; NULL or "": the library's own choice. A call the chosen kernel
 * cannot serve fails with BITIMPL_UNSUPPORTED. For tests and measurements. */
int bitimpl_cuda_select_kernel(const char* name);
/* What served this thread's last operator call, such as "ternary_linear/base3/int8/gemv/sm_90". */
const char* bitimpl_cuda_last_kernel(void);

/* ---- operators ---------------------------------------------------------------------------- */

/* Bytes of workspace, any alignment, or -1. */
int64_t bitimpl_cuda_linear_workspace(const bitimpl_weight* weight, int64_t rows, int32_t activation,
                                      int32_t device);
/* bitimpl_linear of impl.h: formats TWO_BIT and BASE3, every activation, any number of components. */
int bitimpl_cuda_linear(const bitimpl_linear_call* call, int32_t device, void* stream);

/* ---- packing ------------------------------------------------------------------------------ */

/* As bitimpl_pack, bitimpl_unpack and bitimpl_dequantize, except that codes beyond -1 .. 1 are not noticed
 * (that would have to wait for the device): they become the digit of their sign. out: float32, float16 or
 * bfloat16 elements. */
int bitimpl_cuda_pack(int32_t format, int32_t components, int64_t rows, int64_t cols, int64_t group_size,
                      const int8_t* codes, uint8_t* out, int64_t out_bytes, int32_t device, void* stream);
int bitimpl_cuda_unpack(const bitimpl_weight* weight, int8_t* codes, int32_t device, void* stream);
int bitimpl_cuda_dequantize(const bitimpl_weight* weight, int64_t row_begin, int64_t row_end, void* out,
                            int32_t out_dtype, int64_t out_row_stride, int32_t device, void* stream);

/* q: int8 [x.rows, x.cols] contiguous; scale: float32 [x.rows]. */
int bitimpl_cuda_quantize_int8(const bitimpl_matrix* x, int8_t* q, float* scale, int32_t device, void* stream);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif /* BITIMPL_CUDA_H */
