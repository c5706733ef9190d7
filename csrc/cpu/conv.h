// A convolution as the linear kernels see it: a matrix of gathered activations, tile by tile, times
// the weight matrix. This header names the pieces:
//   conv_plan.cpp     checks the arguments and works out all sizes and places
//   conv_image.cpp    quantises x into a channels-last image in the workspace
//   conv_gather.cpp   copies the activations of a tile of output positions out of that image
//   conv_border.cpp   takes added positions that count for nothing out of sign products
//   conv.cpp          cuts the work into tiles, runs the kernels, stores y
#ifndef BITIMPL_CPU_CONV_H
#define BITIMPL_CPU_CONV_H

#include <stdint.h>

#include "kernels.h"
#include "operators.h"

namespace bitimpl {

// Positions of x that one unit of quantisation covers: four words of signs.
constexpr int64_t kPiecePixels = 256;
// Rows of the weight (output channels) between two stores of results; a multiple of every block.
constexpr int64_t kChunkRows = 160;
static_assert(kChunkRows % (2 * kBinaryBlockRows) == 0 && kChunkRows % kTwoBitBlockRows == 0 &&
                  kChunkRows % kBase3BlockRows == 0,
              "chunks end with blocks");
// Tokens (output positions) of a tile at most.
constexpr int64_t kMaxTileTokens = 128;
// Bytes by which a copy may read and write past its end (conv_gather.cpp), rounded up to a cache line.
constexpr int64_t kSlack = 64;

// A run of positions of an image with one stride: `lines` of them make up a sample. All positions
// form one line where the strides allow.
struct Lines {
  int64_t count;
  int64_t length;
  int64_t stride;     // of positions, in elements
  int64_t pieces;     // of kPiecePixels, per line
};

// Where everything lies in the workspace, in bytes from a 64-byte boundary. A function of sizes.
struct ConvLayout {
  int64_t image[2];      // planes
  int64_t partials;      // of each piece: float64 sum of magnitudes, or the bits of the largest
  int64_t scale;         // float32 of each sample
  int64_t factor;        // float32 of each sample: quantisation_factor
  int64_t border[2];     // int8 of each sample: what added positions hold, per plane
  int64_t tap_sums;      // int32 [components][taps][rows], where the border is corrected
  int64_t bias;
  int64_t scratch;       // scratch_stride bytes for each thread, divided as follows
  int64_t scratch_stride;

  int64_t windows;       // Window of each token
  int64_t rows[2];       // gathered activations, planes or signs
  int64_t row_stride;    // bytes
  int64_t sums[2];
  int64_t token_scale;
  int64_t results;       // [tile tokens][kChunkRows] in the type of y
  int64_t dots;          // the same in float32, and once more for their totals
  int64_t totals;
  int64_t kernel_scratch;
};

// Everything about one call that its arguments' sizes determine.
struct ConvPlan {
  int32_t activation;
  int32_t planes;
  int32_t padding_value;
  bool pads;      // some position is added
  bool corrects;  // added positions count for nothing although their bits say -1
  int64_t samples;
  int64_t channels;
  int64_t size[3];  // of a sample of x
  int64_t pixels;
  int64_t kernel[3], stride[3], dilation[3], before[3];
  int64_t taps;
  int64_t out[3];  // of a sample of y
  int64_t out_pixels;
  int64_t tokens;  // samples * out_pixels

  int64_t groups;
  int64_t group_channels;
  int64_t group_rows;
  int64_t rows;
  int64_t cols;

  // The quantised image: [sample][pixel][group][group_bytes], a bit (sign) or byte a channel.
  int64_t group_bytes;
  int64_t pixel_bytes;
  int64_t sample_bytes;

  Lines lines;
  int64_t tile_tokens;
};

// Checks the weight, the convolution and x against each other and fills *plan.
int plan_conv(const bitimpl_weight& weight, const bitimpl_conv* conv, const bitimpl_image* x,
              int32_t activation, ConvPlan* plan);
int check_image_data(const bitimpl_image& image, const char* name);
// Checks y against the plan.
int check_output(const ConvPlan& plan, const bitimpl_image* y);
ConvLayout lay_out_conv(const KernelTable& kernels, const ConvPlan& plan, const LinearTask& task);

// Fills image, scale and border of the workspace.
void quantize_image(const KernelTable& kernels, const ConvPlan& plan, const bitimpl_image& x,
                    const ConvLayout& layout, char* base, int threads);

// The part of the image that one output position sees. Taps [first, last) of each dimension fall
// inside; origin is the place of tap 0, which may lie outside.
struct Window {
  int64_t sample;
  int64_t place[3];  // in y
  int64_t origin[3];
  int64_t first[3];
  int64_t last[3];
  bool inside;       // every tap
  int64_t result;    // of channel 0 in y, in elements
};

// Windows of `count` tokens from `token` on.
void find_windows(const ConvPlan& plan, int64_t token, int64_t count, Window* windows);
// Activations of conv group `group` under the windows, into the thread's scratch.
void gather(const KernelTable& kernels, const ConvPlan& plan, const ConvLayout& layout,
            const char* base, char* scratch, int64_t group, const Window* windows, int64_t count);

// Fills tap_sums: the sum of the weights of each row at each tap. Binary weights.
void sum_taps(const KernelTable& kernels, const ConvPlan& plan, const LinearTask& task,
              const ConvLayout& layout, char* base, int threads);
// Adds the sums of the taps that fall outside, for rows [row, row + rows) of a component.
void add_outside(const ConvPlan& plan, const Window& window, const int32_t* tap_sums,
                 int64_t component, int64_t row, int64_t rows, int32_t* out);

}  // namespace bitimpl

#endif  // BITIMPL_CPU_CONV_H
