// Quantising an image: x of any type and strides to a channels-last image of bits or bytes, sample
// by sample.
//
// A unit of work is a piece of up to kPiecePixels positions with all their channels. It is read in
// runs along whichever of channels and positions lies closer together; runs along positions are
// quantised into a small square and turned around. Sums of magnitudes are taken unit by unit and
// added in order, so that they do not depend on threads or batch.
#include <stdint.h>
#include <string.h>

#include "../common/checks.h"
#include "conv.h"
#include "parallel.h"
#include "quantize.h"

namespace bitimpl {
namespace {

constexpr int64_t kChunk = 1024;     // values converted to float32 at a time, on the stack
constexpr int64_t kSquare = 64;      // channels turned around at a time
constexpr int64_t kPieceWords = kPiecePixels / 64;
constexpr uint32_t kOneBits = 0x3f800000u;  // 1.0f

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Elements of x as float32.
struct Reader {
  const KernelTable& kernels;
  const char* data;
  int32_t dtype;
  int64_t element;
  float values[kChunk];
  uint16_t halves[kChunk];

  Reader(const KernelTable& table, const bitimpl_image& x)
      : kernels(table),
        data(static_cast<const char*>(x.data)),
        dtype(x.dtype),
        element(bytes_of_dtype(x.dtype)) {}

  // n <= kChunk elements from `offset` on, `stride` apart.
  const float* load(int64_t offset, int64_t stride, int64_t n) {
    const char* from = data + offset * element;
    if (stride == 1 || n == 1) {
      if (dtype == BITIMPL_F32) return reinterpret_cast<const float*>(from);
      kernels.to_float(from, dtype, n, values);
    } else if (dtype == BITIMPL_F32) {
      const float* at = reinterpret_cast<const float*>(from);
      for (int64_t i = 0; i < n; ++i) values[i] = at[i * stride];
    } else {
      const uint16_t* at = reinterpret_cast<const uint16_t*>(from);
      for (int64_t i = 0; i < n; ++i) halves[i] = at[i * stride];
      kernels.to_float(halves, dtype, n, values);
    }
    return values;
  }

  // Calls visit(first, count, values) over n elements.
  template <class Visit>
  void each(int64_t offset, int64_t stride, int64_t n, Visit visit) {
    for (int64_t k = 0; k < n; k += kChunk) {
      const int64_t count = least(kChunk, n - k);
      visit(k, count, load(offset + k * stride, stride, count));
    }
  }
};

// The values of a piece that are not 0: their number and the sum of their magnitudes.
struct Kept {
  double sum = 0.0;
  int64_t count = 0;
};

struct Piece {
  int64_t sample;
  int64_t pixel;   // the first one, within the sample
  int64_t pixels;
  int64_t offset;  // of its channel 0 in x, in elements
};

struct Quantisation {
  const KernelTable& kernels;
  const ConvPlan& plan;
  const bitimpl_image& x;
  const ConvLayout& layout;
  char* base;
  bool along_channels;  // runs go along channels, else along positions
  bool dense;           // the channels of successive positions form one run

  Quantisation(const KernelTable& table, const ConvPlan& p, const bitimpl_image& image,
               const ConvLayout& at, char* workspace)
      : kernels(table), plan(p), x(image), layout(at), base(workspace) {
    along_channels =
        p.channels > 1 && (p.lines.length == 1 || image.channel_stride < p.lines.stride);
    dense = image.channel_stride == 1 && p.lines.stride == p.channels;
  }

  // -1, 0 and +1: SIGN and TERNARY. Signs have no factor.
  bool low() const { return ternary() || plan.activation == BITIMPL_ACTIVATION_SIGN; }
  bool ternary() const { return plan.activation == BITIMPL_ACTIVATION_TERNARY; }
  int64_t pieces() const { return plan.samples * plan.lines.count * plan.lines.pieces; }

  Piece piece(int64_t index) const {
    const Lines& lines = plan.lines;
    const int64_t line = index / lines.pieces % lines.count;
    const int64_t begin = index % lines.pieces * kPiecePixels;
    Piece piece;
    piece.sample = index / (lines.pieces * lines.count);
    piece.pixel = line * lines.length + begin;
    piece.pixels = least(kPiecePixels, lines.length - begin);
    piece.offset = piece.sample * x.sample_stride + begin * lines.stride;
    if (lines.count > 1) {
      piece.offset += line / plan.size[1] * x.spatial_stride[0] +
                      line % plan.size[1] * x.spatial_stride[1];
    }
    return piece;
  }

  char* pixels_of(const Piece& piece, int plane) const {
    return base + layout.image[plane] + piece.sample * plan.sample_bytes +
           piece.pixel * plan.pixel_bytes;
  }

  // Calls visit(values, count) over every element of a piece.
  template <class Visit>
  void each_value(Reader& reader, const Piece& piece, Visit visit) const {
    const auto some = [&](int64_t, int64_t count, const float* values) { visit(values, count); };
    const int64_t stride = plan.lines.stride;
    if (dense) {
      reader.each(piece.offset, 1, piece.pixels * plan.channels, some);
    } else if (along_channels) {
      for (int64_t i = 0; i < piece.pixels; ++i) {
        reader.each(piece.offset + i * stride, x.channel_stride, plan.channels, some);
      }
    } else {
      for (int64_t c = 0; c < plan.channels; ++c) {
        reader.each(piece.offset + c * x.channel_stride, stride, piece.pixels, some);
      }
    }
  }

  uint32_t max_magnitude(Reader& reader, const Piece& piece) const {
    uint32_t most = 0;
    each_value(reader, piece, [&](const float* values, int64_t count) {
      const uint32_t some = kernels.max_magnitude(values, count);
      most = some > most ? some : most;
    });
    return most;
  }

  double sum_magnitudes(Reader& reader, const Piece& piece) const {
    double sum = 0.0;
    each_value(reader, piece, [&](const float* values, int64_t count) {
      sum += kernels.sum_magnitudes(values, count);
    });
    return sum;
  }

  // ---- bytes ---------------------------------------------------------------------------------

  // low() ones, n <= kChunk; `threshold` is TERNARY's.
  void round_low(const float* values, int64_t n, float threshold, int8_t* q, Kept& kept) const {
    uint64_t signs[kChunk / 64], nonzero[kChunk / 64];
    const uint8_t* present = nullptr;
    if (ternary()) {
      kept.sum += kernels.pack_ternary(values, n, threshold, signs, nonzero);
      present = reinterpret_cast<const uint8_t*>(nonzero);
      kept.count += kernels.count_ones(present, 0, n);
    } else {
      kept.sum += kernels.pack_signs(values, n, signs);
    }
    kernels.spread_bits(reinterpret_cast<const uint8_t*>(signs), present, n, q);
  }

  void round(const float* values, int64_t n, float factor, int8_t* hi, int8_t* lo, Kept& kept) const {
    if (low()) {
      round_low(values, n, factor, hi, kept);
    } else if (plan.planes == 1) {
      kernels.round_int8(values, n, factor, hi);
    } else {
      int32_t sums[2];
      kernels.round_int16(values, n, factor, hi, lo, sums);
    }
  }

  Kept round_piece(Reader& reader, const Piece& piece) const {
    Kept kept;
    int8_t* out[2];
    for (int i = 0; i < plan.planes; ++i) out[i] = reinterpret_cast<int8_t*>(pixels_of(piece, i));
    if (plan.planes == 1) out[1] = nullptr;
    const float* factors = reinterpret_cast<const float*>(base + layout.factor);
    const float factor = low() && !ternary() ? 0.0f : factors[piece.sample];
    const int64_t channels = plan.channels;
    if (factor == 0.0f && !low()) {  // not all values are finite
      for (int i = 0; i < plan.planes; ++i) {
        memset(out[i], 0, static_cast<size_t>(piece.pixels * channels));
      }
      return kept;
    }
    const auto plane = [&](int i, int64_t at) { return out[i] == nullptr ? nullptr : out[i] + at; };
    if (dense || along_channels) {
      const int64_t run = dense ? piece.pixels * channels : channels;
      for (int64_t at = 0; at < piece.pixels * channels; at += run) {
        const int64_t from = piece.offset + at / channels * plan.lines.stride;
        reader.each(from, x.channel_stride, run, [&](int64_t k, int64_t n, const float* values) {
          round(values, n, factor, plane(0, at + k), plane(1, at + k), kept);
        });
      }
      return kept;
    }
    int8_t square[2][kSquare * kPiecePixels];
    for (int64_t first = 0; first < channels; first += kSquare) {
      const int64_t count = least(kSquare, channels - first);
      for (int64_t c = 0; c < count; ++c) {
        const int64_t from = piece.offset + (first + c) * x.channel_stride;
        const float* values = reader.load(from, plan.lines.stride, piece.pixels);
        round(values, piece.pixels, factor, square[0] + c * kPiecePixels, square[1] + c * kPiecePixels,
              kept);
      }
      for (int i = 0; i < plan.planes; ++i) {
        kernels.transpose(square[i], kPiecePixels, count, piece.pixels, out[i] + first, channels, 1);
      }
    }
    return kept;
  }

  // ---- signs as bits -------------------------------------------------------------------------

  // Each returns the sum of magnitudes.
  double sign_runs(Reader& reader, const Piece& piece) const {
    double sum = 0.0;
    uint64_t words[kChunk / 64];
    char* out = pixels_of(piece, 0);
    const auto pack = [&](int64_t k, int64_t n, const float* values) {
      sum += kernels.pack_signs(values, n, words);
      memcpy(out + k / 8, words, static_cast<size_t>((n + 7) / 8));
    };
    if (dense && plan.group_channels % 8 == 0) {
      reader.each(piece.offset, 1, piece.pixels * plan.channels, pack);
      return sum;
    }
    for (int64_t i = 0; i < piece.pixels; ++i) {
      for (int64_t g = 0; g < plan.groups; ++g, out += plan.group_bytes) {
        const int64_t from = piece.offset + i * plan.lines.stride +
                             g * plan.group_channels * x.channel_stride;
        reader.each(from, x.channel_stride, plan.group_channels, pack);
      }
    }
    return sum;
  }

  // Channels [first, first + count), count <= 64, of a group whose bits go to `out` and on, a pixel
  // plan.pixel_bytes further.
  double sign_square(Reader& reader, const Piece& piece, int64_t first, int64_t count,
                     char* out) const {
    double sum = 0.0;
    uint64_t words[kPieceWords];
    uint64_t square[kPieceWords][64];
    if (count < 64) memset(square, 0, sizeof square);
    const int64_t blocks = (piece.pixels + 63) / 64;
    for (int64_t c = 0; c < count; ++c) {
      const int64_t from = piece.offset + (first + c) * x.channel_stride;
      const float* values = reader.load(from, plan.lines.stride, piece.pixels);
      sum += kernels.pack_signs(values, piece.pixels, words);
      for (int64_t b = 0; b < blocks; ++b) square[b][c] = words[b];
    }
    const size_t bytes = static_cast<size_t>((count + 7) / 8);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t pixels = least(64, piece.pixels - b * 64);
      char* to = out + b * 64 * plan.pixel_bytes;
      uint64_t turned[64];
      kernels.transpose_bits(square[b], turned);
      if (bytes == 8) {
        for (int64_t i = 0; i < pixels; ++i, to += plan.pixel_bytes) memcpy(to, turned + i, 8);
      } else {
        for (int64_t i = 0; i < pixels; ++i, to += plan.pixel_bytes) memcpy(to, turned + i, bytes);
      }
    }
    return sum;
  }

  // The same for up to 8 channels, where turning a square would mostly turn zeros.
  double sign_few(Reader& reader, const Piece& piece, int64_t first, int64_t count,
                  char* out) const {
    double sum = 0.0;
    uint64_t words[kPieceWords];
    uint8_t bytes[kPiecePixels] = {};
    for (int64_t c = 0; c < count; ++c) {
      const int64_t from = piece.offset + (first + c) * x.channel_stride;
      const float* values = reader.load(from, plan.lines.stride, piece.pixels);
      sum += kernels.pack_signs(values, piece.pixels, words);
      for (int64_t i = 0; i < piece.pixels; ++i) {
        bytes[i] = static_cast<uint8_t>(bytes[i] | (words[i / 64] >> (i % 64) & 1) << c);
      }
    }
    for (int64_t i = 0; i < piece.pixels; ++i) {
      out[i * plan.pixel_bytes] = static_cast<char>(bytes[i]);
    }
    return sum;
  }

  double sign_piece(Reader& reader, const Piece& piece) const {
    if (along_channels) return sign_runs(reader, piece);
    double sum = 0.0;
    char* out = pixels_of(piece, 0);
    for (int64_t g = 0; g < plan.groups; ++g, out += plan.group_bytes) {
      const int64_t first = g * plan.group_channels;
      for (int64_t c = 0; c < plan.group_channels; c += 64) {
        const int64_t count = least(64, plan.group_channels - c);
        sum += count <= 8 ? sign_few(reader, piece, first + c, count, out + c / 8)
                          : sign_square(reader, piece, first + c, count, out + c / 8);
      }
    }
    return sum;
  }
};

void measure_range(void* context, int, int64_t begin, int64_t end) {
  const Quantisation& q = *static_cast<const Quantisation*>(context);
  Reader reader(q.kernels, q.x);
  for (int64_t i = begin; i < end; ++i) {
    if (q.ternary()) {
      reinterpret_cast<double*>(q.base + q.layout.partials)[i] = q.sum_magnitudes(reader, q.piece(i));
    } else {
      reinterpret_cast<uint32_t*>(q.base + q.layout.partials)[i] = q.max_magnitude(reader, q.piece(i));
    }
  }
}

void round_range(void* context, int, int64_t begin, int64_t end) {
  const Quantisation& q = *static_cast<const Quantisation*>(context);
  Reader reader(q.kernels, q.x);
  for (int64_t i = begin; i < end; ++i) {
    const Kept kept = q.round_piece(reader, q.piece(i));
    if (q.low()) reinterpret_cast<double*>(q.base + q.layout.partials)[i] = kept.sum;
    if (q.ternary()) reinterpret_cast<int64_t*>(q.base + q.layout.counts)[i] = kept.count;
  }
}

void sign_range(void* context, int, int64_t begin, int64_t end) {
  const Quantisation& q = *static_cast<const Quantisation*>(context);
  Reader reader(q.kernels, q.x);
  for (int64_t i = begin; i < end; ++i) {
    reinterpret_cast<double*>(q.base + q.layout.partials)[i] = q.sign_piece(reader, q.piece(i));
  }
}

void scale_sample(const Quantisation& q, int64_t sample, const uint32_t* partials, int64_t count) {
  const ConvPlan& plan = q.plan;
  uint32_t most = plan.pads && plan.padding_value != 0 ? kOneBits : 0;
  for (int64_t i = 0; i < count; ++i) most = partials[i] > most ? partials[i] : most;
  const float limit = plan.planes == 1 ? kInt8Limit : kInt16Limit;
  float* scale = reinterpret_cast<float*>(q.base + q.layout.scale) + sample;
  const float factor = quantisation_factor(most, limit, scale);
  reinterpret_cast<float*>(q.base + q.layout.factor)[sample] = factor;
  int8_t border[2];
  const float value = static_cast<float>(plan.padding_value);
  Kept nobody_asks;
  q.round(&value, 1, factor, border, border + 1, nobody_asks);
  for (int i = 0; i < plan.planes; ++i) q.base[q.layout.border[i] + sample] = border[i];
}

// As bytes: added positions hold padding_value itself, and no scale sees them.
void quantize_low(Quantisation& q, double work, int threads) {
  const ConvPlan& plan = q.plan;
  if (q.ternary()) parallel_ranges(q.pieces(), 1, work / 4.0, threads, measure_range, &q);
  for (int64_t s = 0; s < plan.samples; ++s) {
    if (q.ternary()) set_threshold(plan, q.layout, q.base, s);
    q.base[q.layout.border[0] + s] = static_cast<char>(plan.padding_value);
  }
  parallel_ranges(q.pieces(), 1, work, threads, round_range, &q);
  for (int64_t s = 0; s < plan.samples; ++s) {
    if (q.ternary()) scale_ternary(plan, q.layout, q.base, s);
    else scale_signs(plan, q.layout, q.base, s);
  }
}

}  // namespace

void quantize_image(const KernelTable& kernels, const ConvPlan& plan, const bitimpl_image& x,
                    const ConvLayout& layout, char* base, int threads) {
  Quantisation q(kernels, plan, x, layout, base);
  const int64_t pieces = q.pieces(), of_sample = plan.lines.count * plan.lines.pieces;
  // As in prepare_activations.
  const double work = 8.0 * static_cast<double>(plan.samples) * static_cast<double>(plan.pixels) *
                      static_cast<double>(plan.channels);
  if (plan.bits) {
    parallel_ranges(pieces, 1, work, threads, sign_range, &q);
    for (int64_t s = 0; s < plan.samples; ++s) scale_signs(plan, layout, base, s);
    return;
  }
  if (q.low()) return quantize_low(q, work, threads);
  parallel_ranges(pieces, 1, work / 4.0, threads, measure_range, &q);
  const uint32_t* partials = reinterpret_cast<const uint32_t*>(base + layout.partials);
  for (int64_t s = 0; s < plan.samples; ++s) scale_sample(q, s, partials + s * of_sample, of_sample);
  parallel_ranges(pieces, 1, work, threads, round_range, &q);
}

}  // namespace bitimpl
