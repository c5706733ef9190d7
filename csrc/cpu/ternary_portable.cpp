// Ternary kernels in plain C++, for processors without a kernel of their own.
#include "ternary_planes.h"

namespace bitimpl {
namespace {

// The bytes of a step, zeros after the n-th: loops over all 64 columns become vector code.
struct StepBytes {
  uint8_t bytes[kStep] = {};

  StepBytes(const uint8_t* from, int64_t n) { memcpy(bytes, from, static_cast<size_t>(n)); }
};

struct Portable {
  static void decode_two_bit(const uint8_t* bytes, int64_t n, uint8_t* const planes[4]) {
    const StepBytes step(bytes, n);
    for (int j = 0; j < 4; ++j) {
      uint8_t digits[kStep];
      for (int i = 0; i < kStep; ++i) digits[i] = step.bytes[i] >> (2 * j) & 3;
      memcpy(planes[j], digits, sizeof digits);
    }
  }

  static void decode_base3(const uint8_t* bytes, int64_t n, uint8_t* const planes[5]) {
    // floor(byte / 3) = byte * 171 >> 9 for every byte value.
    StepBytes rest(bytes, n);
    for (int j = 0; j < 5; ++j) {
      uint8_t digits[kStep];
      for (int i = 0; i < kStep; ++i) {
        const uint16_t product = static_cast<uint16_t>(rest.bytes[i] * 171u);
        const uint8_t third = static_cast<uint8_t>(product >> 9);
        digits[i] = static_cast<uint8_t>(rest.bytes[i] - 3 * third);
        rest.bytes[i] = third;
      }
      memcpy(planes[j], digits, sizeof digits);
    }
  }

  static void dot4(const uint8_t* digits, const int8_t* x, int64_t n, int32_t sums[4]) {
    // A product is at most 2 * 128: a sixteenth of a plane of them stays in int16.
    constexpr int kLanes = 16;
    static_assert(kPlane / kLanes * 256 <= 32767, "int16 sums of a plane");
    for (int r = 0; r < 4; ++r) {
      const uint8_t* row = digits + r * kPlane;
      int16_t lanes[kLanes] = {};
      for (int64_t k = 0; k < n; k += kLanes) {
        for (int j = 0; j < kLanes; ++j) {
          lanes[j] = static_cast<int16_t>(lanes[j] + row[k + j] * x[k + j]);
        }
      }
      for (int j = 0; j < kLanes; ++j) sums[r] += lanes[j];
    }
  }

  static void dot4(const uint8_t* digits, const float* x, int64_t n, float sums[4]) {
    constexpr int kLanes = 8;
    for (int r = 0; r < 4; ++r) {
      const uint8_t* row = digits + r * kPlane;
      float lanes[kLanes] = {};
      int64_t k = 0;
      for (; k + kLanes <= n; k += kLanes) {
        for (int j = 0; j < kLanes; ++j) {
          lanes[j] += static_cast<float>(row[k + j] - 1) * x[k + j];
        }
      }
      for (; k < n; ++k) lanes[0] += static_cast<float>(row[k] - 1) * x[k];
      sums[r] += ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
                 ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    }
  }
};

}  // namespace

void ternary_portable(const LinearTask& task, const Tile& tile) {
  run_ternary<Portable>(task, tile);
}

int64_t ternary_scratch_portable(const LinearTask&) { return 0; }

bool takes_bits_portable(const LinearTask& task) { return is_sign_product(task); }

}  // namespace bitimpl
