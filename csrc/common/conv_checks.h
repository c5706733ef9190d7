// Checks of a convolution's arguments, the same for every device.
#ifndef BITIMPL_COMMON_CONV_CHECKS_H
#define BITIMPL_COMMON_CONV_CHECKS_H

#include <stdint.h>

#include "error.h"

namespace bitimpl {

// What the sizes of a convolution that has been checked make of them.
struct ConvSizes {
  int64_t pixels;      // of a sample of x
  int64_t taps;        // positions of the kernel
  int64_t out[3];      // of a sample of y
  int64_t out_pixels;
  bool pads;           // some position is added
};

// Checks the weight, the convolution and x against each other (x.data is not looked at) and fills *sizes.
int check_conv(const bitimpl_weight& weight, const bitimpl_conv* conv, const bitimpl_image* x, int32_t activation,
               ConvSizes* sizes);
int check_image_data(const bitimpl_image& image, const char* name);
// Checks y against x, the weight and the sizes.
int check_conv_output(const bitimpl_weight& weight, const bitimpl_image& x, const ConvSizes& sizes,
                      const bitimpl_image* y);

}  // namespace bitimpl

#endif  // BITIMPL_COMMON_CONV_CHECKS_H
