// Products of bits with bits, of linear layers and convolutions alike: what their kernels are given, by value.
//
// Everything is a convolution here. A matrix of tokens is one of samples of a single pixel under a kernel of a
// single tap; what a linear layer has beyond that are scale groups, here segments. A row of the weight and a pixel
// of a group lie as words of 32 channels, least significant bit first, cut so that operands of tensor cores need
// no shifts: a segment of a linear layer is filled up with zeros to whole 128 bits, a tap of a convolution to 32,
// 64 or a multiple of 128.
//
// Sums are set bits of x & w, since that is what every GPU multiplies fast (Hopper has no exclusive or). With
// a set bit for +1 (form kSigns)
//     dot = columns - 2 set(x) - 2 set(w) + 4 set(x & w)
// where a pixel outside the image, which has no set bits, counts as -1: with tap_sums the epilogue turns that into
// another padding_value. Ternary values (form kPlanes, linear layers only) lie as four planes: x as [p, n, ~n, ~p]
// with p where it is +1 and n where it is -1, w likewise of P and N as [P, N, P, N]. Then
//     set(x & w) = p P + n N + (set(P) - n P) + (set(N) - p N)    and    dot = set(x & w) - set(w) / 2
// A kernel prefers them where planes_pay() (bits.cuh) says so.
#ifndef BITIMPL_CUDA_BITS_H
#define BITIMPL_CUDA_BITS_H

#include "task.h"

namespace bitimpl {
namespace cuda {

constexpr int kChunkWords = 4;   // of 128 bits: what is copied at once, but for narrow taps
constexpr int kRowWords = 32;    // rows of tokens are filled up to so many: a line of shared memory
constexpr int kPlaneSections = 4;

enum class Form : int32_t { kSigns, kPlanes };

// Words of a segment for each that a single plane of it has.
inline int32_t sections_of(Form form) { return form == Form::kPlanes ? kPlaneSections : 1; }

// The windows of a convolution; all ones for a matrix.
struct Windows {
  int32_t size[3];    // of a sample of x
  int32_t out[3];     // of a sample of y
  int32_t kernel[3];
  int32_t stride[3];
  int32_t dilation[3];
  int32_t before[3];  // positions added in front
  int32_t taps;
  int32_t padding_value;  // -1, 0, +1
  int32_t pads;           // whether a window reaches beyond the image
  int64_t pixels;         // of a sample of x
  int64_t positions;      // of a sample of y
};

// Activations as the caller has them: floats, or (dtype BITIMPL_SIGNS, strides in bits) signs with their scales.
struct BitSource {
  const void* x;
  const float* scale;
  int32_t dtype;
  int64_t sample_stride;
  int64_t channel_stride;
  int64_t spatial_stride[3];
};

// y, of floats or (dtype BITIMPL_SIGNS, strides in bits) of signs.
struct BitResult {
  void* y;
  const void* bias;  // null: none
  int32_t dtype;
  int32_t bias_dtype;
  int64_t sample_stride;
  int64_t channel_stride;
  int64_t spatial_stride[3];
  bitimpl_signs signs;  // of a y of signs
};

struct BitTask {
  Weight weight;  // scales and sizes; its codes as they were given
  Windows windows;
  Form form;
  int64_t samples;
  int64_t groups;
  int64_t group_channels;  // of x
  int64_t group_rows;      // of the weight

  int32_t segment_words;  // from one segment to the next in a row
  int32_t tap_words;      // of a tap: all segments of a row, or the channels of a group
  int32_t chunk_words;    // 1, 2 or 4: what copies go by; every tap and segment is a multiple

  // Pixel p of a sample (in order of memory) of group g: words at x + (sample * pixels + p) * pixel_words + g *
  // tap_words. Row n of component c: words at w + (c * rows + n) * row_words, tap after tap.
  const uint32_t* x;
  int64_t pixel_words;
  const int32_t* x_counts;  // set bits [samples * pixels, groups, segments]; kPlanes: not looked at
  const float* x_scale;     // [samples], NaN where the sample is not finite
  const uint32_t* w;
  int64_t row_words;
  const int32_t* w_counts;  // [components, rows, segments]; kPlanes: half of the set bits
  const int32_t* tap_sums;  // [components, taps, rows], sums of +-1; null: nothing to correct

  BitSource source;
  BitResult result;
};

// Components times segments: what has a scale of its own, `columns` of x and of w and `words` of every tap.
struct BitUnit {
  int32_t component;
  int32_t segment;
  int32_t first_word;  // in a tap
  int32_t words;       // of a tap
  int32_t columns;     // of all taps
};

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_BITS_H
