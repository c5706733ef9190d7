// A convolution as the linear kernels see it: a matrix of gathered activations, tile by tile, times
// the weight matrix. This header names the pieces:
//   conv_plan.cpp     checks the arguments and works out all sizes and places
//   conv_image.cpp    quantises x into a channels-last image in the workspace
//   conv_scale.cpp    the scales of signs and ternary values
//   conv_signs.cpp    does so where x is of signs already, and writes signs
//   conv_gather.cpp   copies the activations of a tile of output positions out of that image
//   conv_depthwise.cpp does without a matrix where each channel is a group of its own
//   conv_border.cpp   takes added positions that count for nothing out of sign products
//   conv.cpp          cuts the work into tiles, runs the kernels, stores y
#ifndef BITIMPL_CPU_CONV_H
#define BITIMPL_CPU_CONV_H

#include <stdint.h>

#include "../common/conv_checks.h"
#include "kernels.h"
#include "operators.h"

namespace bitimpl {

// Positions of x that one unit of quantisation covers: four words of signs.
constexpr int64_t kPiecePixels = 256;
// Rows of the weight (output channels) between two stores of results; a multiple of every block.
constexpr int64_t kChunkRows = 160;
static_assert(kChunkRows == kDepthwiseRows && kChunkRows % kDepthwiseLanes == 0, "as of depthwise ones");
static_assert(kChunkRows % (2 * kBinaryBlockRows) == 0 && kChunkRows % kTwoBitBlockRows == 0 &&
                  kChunkRows % kBase3BlockRows == 0,
              "chunks end with blocks");
// Tokens (output positions) of a tile at most.
constexpr int64_t kMaxTileTokens = 128;
// Bytes by which a copy may read and write past its end (conv_gather.cpp), and those rounded up to a
// cache line.
constexpr int64_t kOverrun = 16;
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
  int64_t counts;        // of each piece, TERNARY: int64 values that are not 0
  int64_t scale;         // float32 of each sample
  int64_t factor;        // float32 of each sample: quantisation_factor or, TERNARY, the threshold
  int64_t border[2];     // int8 of each sample: what added positions hold, per plane
  int64_t tap_sums;      // int32 [components][taps][rows], where the border is corrected
  int64_t unpacked;      // of depthwise convolutions: int8 codes [components][rows][taps],
  int64_t tap_codes;     // DepthwiseWeights::codes
  int64_t tap_scales;    // and ::scales
  int64_t bias;
  int64_t scratch;       // scratch_stride bytes for each thread, divided as follows
  int64_t scratch_stride;

  int64_t runs;          // Run of up to as many as there are tokens
  int64_t places;        // int64 of each token: of channel 0 in y, in elements
  int64_t rows[2];       // gathered activations, planes or signs
  int64_t row_stride;    // bytes
  int64_t sums[2];
  int64_t token_scale;
  int64_t marks;         // where y is of signs: float32 of each token, its y_scale
  int64_t results;       // [tile tokens][kChunkRows] in the type of y, bits of signs included
  int64_t outside;       // where the border is corrected: int32 [tile tokens][components][kChunkRows],
  int64_t outside_at;    // and where in it each token finds its own, or null
  int64_t taps_at;       // of depthwise convolutions: DepthwiseTaps::at of both planes
  int64_t taps_step;     // and ::step
  int64_t kernel_scratch;
};

// Everything about one call that its arguments' sizes determine.
struct ConvPlan {
  ConvSizes sizes;  // as they were checked
  int32_t activation;
  bool bits;       // activations are bits (SIGN over binary weights and enough channels), else bytes
  int32_t planes;  // of int8; 0 where they are bits
  int32_t padding_value;
  bool pads;      // some position is added
  bool depthwise;  // each channel has one row and is a group of its own: `groups` below is then 1
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

  // The quantised image: [sample][pixel][group][group_bytes], a bit or byte a channel.
  int64_t group_bytes;
  int64_t pixel_bytes;
  int64_t sample_bytes;

  Lines lines;
  int64_t tile_tokens;
};

// Checks the weight, the convolution and x against each other and fills *plan.
int plan_conv(const bitimpl_weight& weight, const bitimpl_conv* conv, const bitimpl_image* x,
              int32_t activation, ConvPlan* plan);
// Kind and form of the activations of `rows` positions, without data.
Activations form_of(const ConvPlan& plan, int64_t rows);
ConvLayout lay_out_conv(const KernelTable& kernels, const ConvPlan& plan, const LinearTask& task);

// The scale of a sample of signs, from the sums of magnitudes in `partials`; the threshold of TERNARY from
// the same, and its scale from the sums and counts of what is above.
void scale_signs(const ConvPlan& plan, const ConvLayout& layout, char* base, int64_t sample);
void set_threshold(const ConvPlan& plan, const ConvLayout& layout, char* base, int64_t sample);
void scale_ternary(const ConvPlan& plan, const ConvLayout& layout, char* base, int64_t sample);

// Fills image, scale and border of the workspace.
void quantize_image(const KernelTable& kernels, const ConvPlan& plan, const bitimpl_image& x,
                    const ConvLayout& layout, char* base, int threads);

// The same where x is of signs, whose scales go with it.
void take_signs(const KernelTable& kernels, const ConvPlan& plan, const bitimpl_image& x,
                const float* x_scale, const ConvLayout& layout, char* base, int threads);
// What tiles of signs take for granted: unused bits of 0, and scales of 1 until a value is not finite.
void begin_signs(const bitimpl_image& y, float* scale);
// Bits [from_at, from_at + count) of `from` to those from to_at on; reads only bytes that hold one of them.
void copy_bits(uint8_t* to, int64_t to_at, const uint8_t* from, int64_t from_at, int64_t count);

// Taps of one dimension under a window: [first, last) fall inside the image. `origin` is the place of
// tap 0, which may lie outside.
struct Taps {
  int64_t origin;
  int64_t first;
  int64_t last;
};

// Tokens of a tile that are neighbours along the width of y: their windows differ in that alone.
struct Run {
  int64_t token;  // the first one, within the tile
  int64_t count;
  int64_t sample;
  int64_t place[3];  // of the first one in y
  Taps depth;
  Taps height;
  bool whole;  // every tap of depth and height falls inside
  int64_t inside_begin;  // tokens of the run, from its first one on, that see every tap of the width
  int64_t inside_end;
};

// Fills runs with those of `count` tokens from `token` on, and returns how many there are.
int64_t find_runs(const ConvPlan& plan, int64_t token, int64_t count, Run* runs);
// The part of a thread's rows that no gathered activation reaches is zero.
void clear_tails(const ConvPlan& plan, const ConvLayout& layout, char* scratch);
// Activations of conv group `group` under the windows, into the thread's scratch.
void gather(const KernelTable& kernels, const ConvPlan& plan, const ConvLayout& layout,
            const char* base, char* scratch, int64_t group, const Run* runs, int64_t count);

constexpr int64_t depthwise_stride_of(int64_t rows) {
  return (rows + kDepthwiseLanes - 1) / kDepthwiseLanes * kDepthwiseLanes;
}
// Fills tap_codes and tap_scales from `unpacked`.
void spread_weights(const ConvPlan& plan, const ConvLayout& layout, const LinearTask& task, char* base);
// y of the task, which is cut from the weight at `row`, for all tokens of the runs.
void run_depthwise(const KernelTable& kernels, const ConvPlan& plan, const ConvLayout& layout,
                   const char* base, char* scratch, const Run* runs, int64_t count,
                   const LinearTask& task, int64_t row);

// Fills tap_sums: the sum of the weights of each row at each tap. Binary weights.
void sum_taps(const KernelTable& kernels, const ConvPlan& plan, const LinearTask& task,
              const ConvLayout& layout, char* base, int threads);
// Fills the tables of Activations::outside for rows [row, row + rows) of the weight, at most kChunkRows.
void find_outside(const ConvPlan& plan, const ConvLayout& layout, const char* base, char* scratch,
                  const Run* runs, int64_t count, int64_t components, int64_t row, int64_t rows);

}  // namespace bitimpl

#endif  // BITIMPL_CPU_CONV_H
