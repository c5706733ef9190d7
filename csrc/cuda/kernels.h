// The kernels of products of bytes and of floats, one a file, and what the host side knows of each. They serve linear
// layers, and convolutions whose windows have been gathered (conv_bytes.h).
#ifndef BITIMPL_CUDA_KERNELS_H
#define BITIMPL_CUDA_KERNELS_H

#include "runtime.h"
#include "task.h"

namespace bitimpl {
namespace cuda {

struct LinearKernel {
  const char* name;
  // Why it cannot serve this task on this device, as the end of a sentence; null: it can. Sizes, dtypes and
  // alignments only: memory is not there yet.
  const char* (*refuses)(const LinearTask& task, const Device& device);
  // Whether it is the one for so many tokens, among those that can serve.
  bool (*prefers)(const LinearTask& task, const Device& device);
  // Whether it reads task.source itself; else task.x is prepared before.
  bool (*quantises)(const LinearTask& task, const Device& device);
  // Bytes of scratch, and the work itself: BITIMPL_OK or fail(...). scratch is aligned to 256 bytes.
  int64_t (*scratch)(const LinearTask& task, const Device& device);
  int (*run)(const LinearTask& task, const Device& device, Stream stream, void* scratch);
  // Whether tests without a GPU cannot execute it: not chosen by itself before bitimpl_cuda_trust names it.
  bool needs_proof = false;
  // How activations that others prepare for it are to lie (Tokens::tile), by the weight and x.planes; null: rows.
  int32_t (*tile)(const LinearTask& task) = nullptr;
};

extern const LinearKernel kGemv;   // gemv.cu
extern const LinearKernel kFloat;  // float.cu
extern const LinearKernel kAny;
extern const LinearKernel kSmallBatch;
extern const LinearKernel kGemm;
extern const LinearKernel kWgmma;  // gemm_sm90a.cu

// Of weights as they lie, with one bit each.
extern const LinearKernel kBinaryGemv;   // binary_bytes.cu
extern const LinearKernel kBinaryFloat;  // binary_float.cu

// Prepares task.x from task.source, which may be of signs (quantize.cu).
int quantize(const LinearTask& task, Stream stream);

// Signs of y (`from`, float32 [tokens, rows]), and their scales (signs_of.cu).
int write_signs(const Result& from, int64_t tokens, int64_t rows, const bitimpl_matrix& to, const bitimpl_signs& signs,
                Stream stream);

// The codes of `to` (TWO_BIT) of binary ones of the same sizes (spread_bits.cu).
int spread_bits(const uint8_t* bits, const Weight& to, Stream stream);

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_KERNELS_H
