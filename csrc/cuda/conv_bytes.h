// Convolutions whose activations are bytes: what their kernels are given, by value, and what the host side knows of
// them.
//
// x is quantised into an image of int8 planes, the channels of a pixel together. Where a group has many rows and
// columns, the windows of a chunk of positions are gathered into tokens (task.h) and the kernels of the linear
// layers multiply those ("gather+gemm" and its like); what is left goes from image to y directly ("any").
#ifndef BITIMPL_CUDA_CONV_BYTES_H
#define BITIMPL_CUDA_CONV_BYTES_H

#include "bits.h"
#include "kernels.h"

namespace bitimpl {
namespace cuda {

constexpr int kImageTile = 64;      // pixels and bytes of a pixel that a block quantises at a time
constexpr int kMostPieces = 128;    // of a sample, whose sums are added in their order
constexpr int kConvPositions = 32;  // of a tile of y
constexpr int kConvRows = 32;

struct ByteConv {
  Weight weight;  // any format, as it was given
  Windows windows;
  int32_t activation;
  int32_t planes;  // 2 (INT16: x ~ 256 image[0] + image[1]), else 1
  int64_t samples;
  int64_t groups;
  int64_t group_channels;
  int64_t group_rows;

  // Channel c of group g of a pixel (of all samples, in order of memory) at image + pixel * pixel_bytes +
  // g * group_bytes + c. Single channels lie side by side; more are filled up with zeros to words of four.
  int64_t group_bytes;
  int64_t pixel_bytes;
  int8_t* image[2];
  uint32_t* border[2];  // [samples]: what positions outside the image hold, in each byte of a word
  float* scale;         // [samples], NaN where the sample is not finite

  // A sample's tiles are shared out to so many blocks, each with partial sums: measured magnitudes (INT8, INT16:
  // the bits of the largest), then sums and counts of those that are kept (SIGN: of all). [samples, pieces]
  int32_t pieces;
  double* measured;
  double* kept;
  double* counts;

  BitSource source;
  BitResult result;
};

// Windows of one group at positions first, first + 1, .. of all samples as tokens 0, 1, ..
struct Chunk {
  int64_t first;
  int64_t count;
  int64_t group;
};

// How many pieces a sample is cut into; fills image, border and scale from task.source (conv_image.cu).
int32_t pieces_of_sample(const ByteConv& task);
int quantize_image(const ByteConv& task, Stream stream);

// Fills the tokens' q, sums and scale (conv_gather.cu).
int gather_windows(const ByteConv& task, const Chunk& chunk, const Tokens& to, Stream stream);
// y of a chunk from [count, group_rows] values of type dtype, scale and bias included.
int store_chunk(const ByteConv& task, const Chunk& chunk, const void* values, int32_t dtype, Stream stream);

// y straight from the image (conv_direct.cu). codes: direct_codes_bytes() of memory, in which the weight is decoded.
int64_t direct_codes_bytes(const ByteConv& task);
int convolve_directly(const ByteConv& task, void* codes, Stream stream);

// How a convolution of bytes is served.
struct ByteService {
  const LinearKernel* linear;  // of gathered windows; null: directly
  const char* name;
};

// The task but for the memory of the workspace.
ByteConv describe_bytes(const BitTask& conv, int32_t activation);
// Whether there is a service. `why`: what the kernel chosen by name refuses it for, unless products of bits have said
// so before because it is one of theirs.
bool choose_bytes(const ByteConv& task, const Device& device, ByteService* service, const char** why);
int64_t byte_workspace(const ByteConv& task, const ByteService& service, const Device& device);

struct ByteCall {
  ByteConv task;
  void* workspace;
  int64_t workspace_bytes;
  const char* query;  // the function that sizes the workspace
};
int run_bytes(const ByteCall& call, const ByteService& service, const Device& device, Stream stream);

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_CONV_BYTES_H
