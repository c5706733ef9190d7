// Signs in the cases of the sanitizer driver: the signs that an operator writes must be those of the
// floats that it writes, and signs that it takes must count as +-1 in float. Buffers are of exactly the
// bytes that impl.h asks for.
#include <cmath>
#include <functional>

#include "sanitize_support.h"

namespace {

float* floats(const Block& block) { return reinterpret_cast<float*>(block.data()); }
int64_t used_bytes(int64_t channels) { return (channels + 7) / 8; }
// From one row of signs to the next: with up to two bytes between them.
int64_t bytes_of(int64_t channels) { return used_bytes(channels) + channels % 3; }

// Intervals of `channels` channels that begin and end at results, or are empty, or everything; the second
// half of the places has results that are taken for no numbers.
struct Intervals {
  Block lower, upper, least, most;

  // y: float32 results, that of channel n at place p at y[p * channels + n]. Those of the first half are
  // numbers, of the others those that are between them.
  Intervals(const float* y, int64_t places, int64_t channels)
      : lower(channels * 4, "lower"), upper(channels * 4, "upper"), least(channels * 4, "least"),
        most(channels * 4, "most") {
    for (int64_t n = 0; n < channels; ++n) {
      const float some = places == 0 ? 0.0f : y[n * 7 % places * channels + n];
      const float other = places == 0 ? 0.0f : y[n * 3 % places * channels + n];
      floats(lower)[n] = n % 3 == 1 ? -INFINITY : some;
      floats(upper)[n] = n % 3 == 0 ? INFINITY : other;
      float low = INFINITY, high = -INFINITY;
      for (int64_t p = 0; p < (places + 1) / 2; ++p) {
        low = std::fmin(low, y[p * channels + n]);
        high = std::fmax(high, y[p * channels + n]);
      }
      floats(least)[n] = n % 2 == 0 ? low : -INFINITY;
      floats(most)[n] = n % 2 == 1 ? high : INFINITY;
    }
    for (Block* block : {&lower, &upper, &least, &most}) block->seal();
  }
};

// Compares bits [places][bytes_of(channels)] and scales [samples] with what the floats say.
void compare(const std::string& line, const Block& bits, const Block& scale, const float* y,
             int64_t samples, int64_t places, int64_t channels, const Intervals& at) {
  const int64_t row = bytes_of(channels);
  for (int64_t s = 0; s < samples; ++s) {
    bool finite = true;
    for (int64_t p = s * places; p < (s + 1) * places; ++p) {
      for (int64_t i = used_bytes(channels); i < row; ++i) {
        if (bits.data()[p * row + i] != 0xFF) stop(line, "a byte between rows of signs was written");
      }
      for (int64_t n = 0; n < used_bytes(channels) * 8; ++n) {
        const bool bit = bits.data()[p * row + n / 8] >> n % 8 & 1;
        const float value = n < channels ? y[p * channels + n] : 0.0f;
        const bool above = n < channels && value >= floats(at.lower)[n] && value <= floats(at.upper)[n];
        if (bit != above) stop(line, "a bit is not the sign of the float");
        if (n < channels) finite = finite && value >= floats(at.least)[n] && value <= floats(at.most)[n];
      }
    }
    if (std::isnan(floats(scale)[s]) == finite || (finite && floats(scale)[s] != 1.0f))
      stop(line, "the scale of signs does not say whether all results are numbers");
  }
}

bitimpl_image image_of(const Block& memory, int32_t dtype, const bitimpl_image& like, int64_t channels) {
  bitimpl_image image = like;
  image.data = memory.data();
  image.dtype = dtype;
  image.channels = channels;
  image.channel_stride = 1;
  int64_t stride = dtype == BITIMPL_SIGNS ? 8 * bytes_of(channels) : channels;
  for (int d = 2; d >= 0; --d) {
    image.spatial_stride[d] = stride;
    stride *= image.size[d];
  }
  image.sample_stride = stride;
  return image;
}

// Both kinds of x of random signs, that of channel c at place p at p * channels + c: float32 +-1 and bits.
struct RandomSigns {
  Block values, bits, scale;

  RandomSigns(int64_t samples, int64_t places, int64_t channels)
      : values(samples * places * channels * 4, "x of +-1"),
        bits(samples * places * bytes_of(channels), "x of signs"),
        scale(samples * 4, "x_scale") {
    Random random;
    for (size_t i = 0; i < bits.bytes; ++i) bits.data()[i] = static_cast<uint8_t>(random.next());
    for (int64_t p = 0; p < samples * places; ++p) {
      for (int64_t c = 0; c < channels; ++c) {
        const bool plus = bits.data()[p * bytes_of(channels) + c / 8] >> c % 8 & 1;
        floats(values)[p * channels + c] = plus ? 1.0f : -1.0f;
      }
    }
    for (int64_t s = 0; s < samples; ++s) floats(scale)[s] = 1.0f;
    for (Block* block : {&values, &bits, &scale}) block->seal();
  }
};

}  // namespace

void check_linear_signs(const std::string& line, const bitimpl_weight& w, const bitimpl_matrix& x,
                        int32_t activation, const void* bias, int32_t bias_dtype) {
  const auto call = [&](const bitimpl_matrix& from, const bitimpl_matrix& to, const bitimpl_signs& signs) {
    const int64_t bytes = bitimpl_linear_workspace(&w, from.rows, activation);
    Block workspace(bytes, "workspace");
    const bitimpl_linear_call all = {&w, from, to, bias, bias_dtype, activation, workspace.data(), bytes};
    const bool any = from.dtype == BITIMPL_SIGNS || to.dtype == BITIMPL_SIGNS;
    if ((any ? bitimpl_linear_signs(&all, &signs) : bitimpl_linear(&all)) != BITIMPL_OK)
      stop(line, "linear_signs failed");
  };
  const auto floats_of = [&](const bitimpl_matrix& from, const bitimpl_signs& signs) {
    Block y(from.rows * w.rows * 4, "y");
    call(from, {y.data(), BITIMPL_F32, 0, from.rows, w.rows, w.rows}, signs);
    return y;
  };
  const auto check_y = [&](const bitimpl_matrix& from, const Block& y, bitimpl_signs signs) {
    const Intervals at(floats(y), from.rows, w.rows);
    Block bits(from.rows * bytes_of(w.rows), "y of signs"), scale(from.rows * 4, "y_scale");
    signs.lower = floats(at.lower);
    signs.upper = floats(at.upper);
    signs.least = floats(at.least);
    signs.most = floats(at.most);
    signs.y_scale = floats(scale);
    call(from, {bits.data(), BITIMPL_SIGNS, 0, from.rows, w.rows, 8 * bytes_of(w.rows)}, signs);
    if (activation != BITIMPL_ACTIVATION_FLOAT)
      compare(line, bits, scale, floats(y), from.rows, 1, w.rows, at);
  };
  check_y(x, floats_of(x, {}), {});
  if (activation != BITIMPL_ACTIVATION_SIGN) return;
  const RandomSigns random(x.rows, 1, w.cols);
  const bitimpl_matrix values = {random.values.data(), BITIMPL_F32, 0, x.rows, w.cols, w.cols};
  const bitimpl_matrix bits = {random.bits.data(), BITIMPL_SIGNS, 0, x.rows, w.cols, 8 * bytes_of(w.cols)};
  bitimpl_signs signs = {};
  signs.x_scale = floats(random.scale);
  const Block y = floats_of(values, {});
  if (std::memcmp(y.data(), floats_of(bits, signs).data(), y.bytes) != 0)
    stop(line, "signs do not count as +-1");
  check_y(bits, y, signs);
}

void check_conv_signs(const std::string& line, const bitimpl_weight& w, const bitimpl_conv& conv,
                      const bitimpl_image& x, const bitimpl_image& y_form, int32_t activation,
                      const void* bias, int32_t bias_dtype) {
  const auto call = [&](const bitimpl_image& from, const bitimpl_image& to, const bitimpl_signs& signs) {
    const int64_t bytes = bitimpl_conv_workspace(&w, &conv, &from, activation);
    Block workspace(bytes, "workspace");
    int status;
    if (from.dtype == BITIMPL_SIGNS || to.dtype == BITIMPL_SIGNS) {
      status = bitimpl_conv_signs(&w, &conv, &from, activation, bias, bias_dtype, &to, &signs,
                                  workspace.data(), bytes);
    } else {
      const auto op = w.format == BITIMPL_BINARY ? bitimpl_binary_conv : bitimpl_ternary_conv;
      status = op(&w, &conv, &from, activation, bias, bias_dtype, &to, workspace.data(), bytes);
    }
    if (status != BITIMPL_OK) stop(line, "conv_signs failed");
  };
  const int64_t places = y_form.size[0] * y_form.size[1] * y_form.size[2];
  const auto floats_of = [&](const bitimpl_image& from, const bitimpl_signs& signs) {
    Block y(x.samples * places * w.rows * 4, "y");
    call(from, image_of(y, BITIMPL_F32, y_form, w.rows), signs);
    return y;
  };
  const auto check_y = [&](const bitimpl_image& from, const Block& y, bitimpl_signs signs) {
    const Intervals at(floats(y), x.samples * places, w.rows);
    Block bits(x.samples * places * bytes_of(w.rows), "y of signs"), scale(x.samples * 4, "y_scale");
    signs.lower = floats(at.lower);
    signs.upper = floats(at.upper);
    signs.least = floats(at.least);
    signs.most = floats(at.most);
    signs.y_scale = floats(scale);
    call(from, image_of(bits, BITIMPL_SIGNS, y_form, w.rows), signs);
    compare(line, bits, scale, floats(y), x.samples, places, w.rows, at);
  };
  check_y(x, floats_of(x, {}), {});
  if (activation != BITIMPL_ACTIVATION_SIGN) return;
  const RandomSigns random(x.samples, x.size[0] * x.size[1] * x.size[2], x.channels);
  const bitimpl_image bits = image_of(random.bits, BITIMPL_SIGNS, x, x.channels);
  bitimpl_signs signs = {};
  signs.x_scale = floats(random.scale);
  const Block y = floats_of(image_of(random.values, BITIMPL_F32, x, x.channels), {});
  if (std::memcmp(y.data(), floats_of(bits, signs).data(), y.bytes) != 0)
    stop(line, "signs do not count as +-1");
  check_y(bits, y, signs);
}
