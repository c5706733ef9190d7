// Panels of bits (panel.h), for activations that come as bits: ternary weights times signs or ternary
// values, binary weights times ternary values.
//
// A weight is a bit of the plane `signs`, 1 for +1, and of the plane `nonzero`, which binary weights do not
// need; so is an activation, where signs need none. What is not 0 on either side differs in its signs or
// not, and that is counted:
//   both ternary      both = wn & xn     dot = ones(both) - 2 ones(both & (ws ^ xs))
//   ternary weights                      dot = ones(wn) - 2 ones(wn & (ws ^ xs))
//   ternary values                       dot = ones(xn) - 2 ones(xn & (ws ^ xs))
// ones(wn) is counted once a row and lies in the panel's headers, ones(xn) once an activation row. A step
// is 32 columns: one dword a row, the vector of `nonzero` in front of the one of `signs`.
//
// What an Isa provides, besides the sums of PlainSums, for each product that takes(product) says yes to:
//   kVectors, kTokens<PRODUCT>
//                          vectors and activation rows of one inner product
//   least_tokens(product)  activation rows from which the bits pay
//   two_bit(bytes, n, nonzero, signs), base3(bytes, n, nonzero, signs)
//                          n <= 64 bytes to the words of 4 or 5 rows, anything past bit n; reads nothing
//                          past n
//   multiply<PRODUCT, V, T>(panel, vector_bytes, x, words, sums)
//                          sums[(v * T + t) * 16 + row] of `words` steps: the dot product but for ones(xn);
//                          `panel` is the first vector's header
//
// Include from bit_panel_<isa>.cpp only.
#ifndef BITIMPL_CPU_BIT_PANEL_H
#define BITIMPL_CPU_BIT_PANEL_H

#include "panel.h"

namespace bitimpl {
namespace {

enum class Product { kBothTernary, kTernaryWeights, kTernaryValues };

[[maybe_unused]] inline Product product_of(const LinearTask& task) {
  if (task.format == BITIMPL_BINARY) return Product::kTernaryValues;
  return task.x.kind == BITIMPL_ACTIVATION_TERNARY ? Product::kBothTernary : Product::kTernaryWeights;
}

constexpr int64_t kWordColumns = 32;

// The bits of activation rows over one segment; row t begins t * stride bytes further.
struct BitTokens {
  const uint8_t* signs;
  const uint8_t* nonzero;  // null where there is none
  int64_t stride;
};

// One bit a weight of the rows of a panel and 64 columns.
struct DecodedBits {
  alignas(64) uint64_t nonzero[kMostPanelRows];
  alignas(64) uint64_t signs[kMostPanelRows];
};

// Bits shift .. shift + 31 of the words of 16 rows to a vector.
inline void store_halves(const uint64_t* words, int64_t shift, void* out) {
  uint32_t halves[kPanelLanes];
  for (int64_t r = 0; r < kPanelLanes; ++r) halves[r] = static_cast<uint32_t>(words[r] >> shift);
  memcpy(out, halves, sizeof halves);
}

// Where vectors are too short to count words as they are: one vector x 4 activation rows, and bits counted
// in bytes for as long as they hold the counts.
struct NarrowBits : PlainSums {
  static constexpr int kVectors = 1;
  template <Product>
  static constexpr int kTokens = 4;
  // Words whose counts, 8 of a byte each, stay in a byte.
  static constexpr int64_t kNarrowWords = 31;

  // For both ternary, counting twice takes as many instructions as multiplying bytes does (panel_<isa>.cpp).
  static constexpr bool takes(Product product) { return product != Product::kBothTernary; }
  static int64_t least_tokens(Product product) {
    return product == Product::kTernaryWeights ? 8 : kGemvTokens + 1;
  }
};

template <class Isa, Product PRODUCT>
struct BitPanel {
  static constexpr bool kTernary = PRODUCT != Product::kTernaryValues;  // weights
  static constexpr bool kCounts = PRODUCT == Product::kTernaryWeights;
  static constexpr int kVectors = Isa::kVectors;
  static constexpr int kTokens = Isa::template kTokens<PRODUCT>;
  static constexpr int64_t kColumns = kWordColumns;
  static constexpr int64_t kPlaneBytes = 4 * kPanelLanes;
  static constexpr int64_t kStepBytes = kTernary ? 2 * kPlaneBytes : kPlaneBytes;
  static constexpr int64_t kHeaderBytes = kCounts ? 4 * kPanelLanes : 0;

  using Rows = Panel<BitPanel>;

  // Words of up to 64 columns from column k of the segment on.
  static void decode(const Rows& panel, int64_t component, int64_t segment, int64_t k, int64_t n,
                     DecodedBits& bits) {
    const LinearTask& task = panel.task;
    if constexpr (!kTernary) {
      panel.each_word(component, segment, k, n, [&](uint64_t word, int64_t row) { bits.signs[row] = word; });
    } else {
      const auto keep = [&](int64_t row, int64_t count) {
        if (n == kStep) return;
        for (int64_t r = row; r < row + count; ++r) bits.nonzero[r] &= (uint64_t{1} << n) - 1;
      };
      if (task.format == BITIMPL_BASE3) {
        panel.template each_group<true>(component, segment, k, n, [&](const uint8_t* bytes, int64_t row) {
          Isa::base3(bytes, n, bits.nonzero + row, bits.signs + row);
          keep(row, 5);
        });
      } else {
        panel.template each_group<false>(component, segment, k, n, [&](const uint8_t* bytes, int64_t row) {
          Isa::two_bit(bytes, n, bits.nonzero + row, bits.signs + row);
          keep(row, 4);
        });
      }
    }
  }

  // Up to 64 columns from column k of the segment on to the panel; adds to the ones of each row.
  static void store_step(const Rows& panel, int64_t component, int64_t segment, int64_t k, int64_t n,
                         const DecodedBits& bits, int32_t* counts) {
    if (kCounts) {
      for (int64_t r = 0; r < kMostPanelRows; ++r) counts[r] += __builtin_popcountll(bits.nonzero[r]);
    }
    for (int64_t v = 0; v < panel.vectors(); ++v) {
      uint8_t* to = panel.at(v, component, segment) + kHeaderBytes + k / kColumns * kStepBytes;
      const int64_t row = v * kPanelLanes;
      for (int64_t shift = 0; shift < n; shift += kColumns, to += kStepBytes) {
        if (kTernary) store_halves(bits.nonzero + row, shift, to);
        store_halves(bits.signs + row, shift, to + kStepBytes - kPlaneBytes);
      }
    }
  }

  static void load_segment(const Rows& panel, int64_t component, int64_t segment) {
    DecodedBits bits = {};
    int32_t counts[kMostPanelRows] = {};
    const int64_t columns = segment_columns(panel.task, segment);
    for (int64_t k = 0; k < columns; k += kStep) {
      const int64_t n = columns - k < kStep ? columns - k : kStep;
      decode(panel, component, segment, k, n, bits);
      store_step(panel, component, segment, k, n, bits, counts);
    }
    if (kCounts) {
      for (int64_t v = 0; v < panel.vectors(); ++v) {
        memcpy(panel.at(v, component, segment), counts + v * kPanelLanes, kHeaderBytes);
      }
    }
  }

  // Sums of V vectors and T activation rows, and what to take from those of row t: offsets[t].
  template <int V, int T>
  static void multiply(const Rows& panel, int64_t vector, int64_t token, int64_t component,
                       int64_t segment, int32_t* sums, int32_t* offsets) {
    const LinearTask& task = panel.task;
    const Activations& x = task.x;
    const int64_t at = token * x.sign_stride * 8 + segment * task.segment / 8;
    BitTokens tokens = {reinterpret_cast<const uint8_t*>(x.signs) + at, nullptr, x.sign_stride * 8};
    if (PRODUCT != Product::kTernaryWeights) {
      tokens.nonzero = reinterpret_cast<const uint8_t*>(x.nonzero) + at;
    }
    const int64_t words = (segment_columns(task, segment) + kColumns - 1) / kColumns;
    Isa::template multiply<PRODUCT, V, T>(panel.at(vector, component, segment), panel.layout.vector_bytes,
                                          tokens, words, sums);
    for (int t = 0; t < T; ++t) {
      offsets[t] = PRODUCT == Product::kTernaryValues ? -x.counts[(token + t) * task.segments + segment] : 0;
    }
  }

  template <bool PLAIN, int V, int T>
  static void compute(const Rows& panel, int64_t vector, int64_t token) {
    constexpr int kSums = V * T;
    const LinearTask& task = panel.task;
    alignas(64) int32_t sums[kSums * kPanelLanes];
    int32_t offsets[T];
    const auto first_row = [&](int i) { return panel.first_row + (vector + i / T) * kPanelLanes; };
    if constexpr (PLAIN) {
      multiply<V, T>(panel, vector, token, 0, 0, sums, offsets);
      for (int i = 0; i < kSums; ++i) {
        Isa::finish(task, token + i % T, first_row(i), panel.lanes_of(vector + i / T),
                    sums + i * kPanelLanes, offsets[i % T], panel.scales_at(vector + i / T, 0, 0));
      }
    } else {
      alignas(64) float total[kSums * kPanelLanes] = {};
      for (int64_t c = 0; c < task.components; ++c) {
        for (int64_t s = 0; s < task.segments; ++s) {
          multiply<V, T>(panel, vector, token, c, s, sums, offsets);
          for (int i = 0; i < kSums; ++i) {
            Isa::add_scaled(sums + i * kPanelLanes, offsets[i % T], panel.scales_at(vector + i / T, c, s),
                            total + i * kPanelLanes);
          }
        }
      }
      for (int i = 0; i < kSums; ++i) {
        Isa::store(task, token + i % T, first_row(i), panel.lanes_of(vector + i / T),
                   total + i * kPanelLanes);
      }
    }
  }
};

// KernelTable::takes_bits. Segments begin with a word of the activations.
template <class Isa>
bool bits_serve(const LinearTask& task) {
  if (is_sign_product(task)) return true;
  if (task.segments > 1 && task.segment % kWordColumns != 0) return false;
  const Product product = product_of(task);
  return Isa::takes(product) && task.x.rows >= Isa::least_tokens(product);
}

// Calls f(BitPanel<Isa, product of the task>).
template <class Isa, class F>
auto with_bit_panel(const LinearTask& task, F f) {
  const Product product = product_of(task);
  if constexpr (Isa::takes(Product::kBothTernary)) {
    if (product == Product::kBothTernary) return f(BitPanel<Isa, Product::kBothTernary>());
  }
  if (product == Product::kTernaryWeights) return f(BitPanel<Isa, Product::kTernaryWeights>());
  return f(BitPanel<Isa, Product::kTernaryValues>());
}

template <class Isa>
int64_t bit_panel_scratch(const LinearTask& task) {
  return with_bit_panel<Isa>(task, [&](auto kernel) { return PanelLayout<decltype(kernel)>(task).bytes; });
}

template <class Isa>
void run_bit_panel(const LinearTask& task, const Tile& tile) {
  with_bit_panel<Isa>(task, [&](auto kernel) { run_panel<decltype(kernel)>(task, tile); });
}

}  // namespace
}  // namespace bitimpl

#endif  // BITIMPL_CPU_BIT_PANEL_H
