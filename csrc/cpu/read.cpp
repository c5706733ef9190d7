// bitimpl_read: nothing but reading, the ruler for memory bandwidth.
#include <stdint.h>
#include <string.h>

#include <atomic>

#include "../include/impl.h"
#include "parallel.h"

namespace bitimpl {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kWords = kLine / 8;
// As far ahead as the kernels prefetch their weights.
constexpr int64_t kPrefetch = 8192;

struct Read {
  const uint8_t* data;
  std::atomic<uint64_t> total;
};

// Lines [begin, end). Eight words in turn: no addition waits for the one before.
void read_lines(void* context, int, int64_t begin, int64_t end) {
  auto* read = static_cast<Read*>(context);
  uint64_t sums[kWords] = {};
  for (int64_t line = begin; line < end; ++line) {
    const uint8_t* at = read->data + line * kLine;
    __builtin_prefetch(at + kPrefetch);  // past the end is harmless: a prefetch never faults
    uint64_t words[kWords];
    memcpy(words, at, kLine);
    for (int64_t i = 0; i < kWords; ++i) sums[i] ^= words[i];
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total ^= sum;
  read->total.fetch_xor(total, std::memory_order_relaxed);
}

}  // namespace
}  // namespace bitimpl

extern "C" uint64_t bitimpl_read(const void* data, int64_t bytes) {
  if (data == nullptr || bytes <= 0) return 0;
  bitimpl::Read read{static_cast<const uint8_t*>(data), {0}};
  const int64_t lines = bytes / bitimpl::kLine;
  // An operator call on as many bytes of two_bit codes does four multiply-accumulates a byte.
  bitimpl::parallel_ranges(lines, 1, 4.0 * static_cast<double>(bytes), bitimpl::available_threads(),
                           bitimpl::read_lines, &read);
  uint64_t total = read.total.load(std::memory_order_relaxed);
  for (int64_t at = lines * bitimpl::kLine; at < bytes; ++at) {
    total ^= static_cast<uint64_t>(read.data[at]) << (8 * (at % 8));
  }
  return total;
}
