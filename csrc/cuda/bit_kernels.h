// The kernels of products of bits, one a file, and what the host side knows of each.
#ifndef BITIMPL_CUDA_BIT_KERNELS_H
#define BITIMPL_CUDA_BIT_KERNELS_H

#include "bits.h"
#include "runtime.h"

namespace bitimpl {
namespace cuda {

// What is to be prepared before a kernel runs.
enum BitNeeds {
  kNeedsRows = 1,     // x as words, x_counts and x_scale; else it reads task.source itself
  kNeedsCounts = 2,   // w_counts, and tap_sums where windows reach beyond the image
  kNeedsWords = 4,    // w as words; else it reads task.weight.codes itself
};

struct BitKernel {
  const char* name;
  // Why it cannot serve this task on this device, as the end of a sentence; null: it can. Sizes, dtypes and
  // alignments only: memory is not there yet.
  const char* (*refuses)(const BitTask& task, const Device& device);
  // Whether it is the one for such sizes, among those that can serve.
  bool (*prefers)(const BitTask& task, const Device& device);
  int (*needs)(const BitTask& task, const Device& device);  // of BitNeeds
  // Bytes of scratch, and the work itself: BITIMPL_OK or fail(...). scratch is aligned to 256 bytes.
  int64_t (*scratch)(const BitTask& task, const Device& device);
  int (*run)(const BitTask& task, const Device& device, Stream stream, void* scratch);
  // Whether tests without a GPU cannot execute it: not chosen by itself before bitimpl_cuda_trust names it.
  bool needs_proof = false;
};

extern const BitKernel kPopcount;  // binary_gemv.cu
extern const BitKernel kBgmma;  // binary_gemm_sm90a.cu: only with BITIMPL_HAS_SM90A
extern const BitKernel kBitMma;
extern const BitKernel kBitAny;
extern const BitKernel kBitCutlass;  // ../cutlass/bit_kernel.cu

// Before a kernel runs: what of BitNeeds it asked for, where the task has memory for it, and the scales of a y of
// signs as 1. One launch; two where the samples of an image take several blocks. Scratch: bit_rows_scratch() bytes,
// aligned to 256.
int64_t bit_rows_scratch(const BitTask& task);
int prepare_bits(const BitTask& task, int needs, Stream stream, void* scratch);
// Only the scales of a y of signs.
inline int begin_signs(const BitTask& task, Stream stream) { return prepare_bits(task, 0, stream, nullptr); }

// The kernel that serves the task, or null (choice.h).
const BitKernel* choose_bits(const BitTask& task, const Device& device, const char** why);

// A product of bits whose arguments have been checked.
struct BitCall {
  BitTask task;  // without memory but for source and result
  void* workspace;
  int64_t workspace_bytes;
  const char* query;  // the function that sizes the workspace
};
int64_t bit_workspace(BitTask task, const BitKernel& kernel, const Device& device);
int run_bits(const BitCall& call, const BitKernel& kernel, const Device& device, Stream stream);

// The task of a matrix of tokens, or of a convolution: sizes only. kPlanes where the weight is ternary.
BitTask describe_bits(const bitimpl_weight& weight, int64_t rows);
BitTask describe_bits(const bitimpl_weight& weight, const bitimpl_conv& conv, const bitimpl_image& x);

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BIT_KERNELS_H
