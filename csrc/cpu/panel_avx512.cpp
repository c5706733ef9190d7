// Integer GEMM for AVX-512 with VNNI: decode a panel of rows once, use it for every activation row.
//
// A panel holds four row blocks (80 rows of base3, 64 of the other formats), one unsigned byte a
// weight: the digit 0, 1 or 2, for binary 0 or 2. Either way dot = dot(bytes, q) - sum(q). The bytes
// lie as vpdpbusd wants them: a vector is 16 rows x 4 columns, one row a dword, and the vectors of
// the same 16 rows follow each other along the columns. The inner product then is the textbook one:
// 2 vectors x 12 activation rows in 24 accumulators, 2 loads of weights and 12 broadcasts for 24
// multiplications, so that neither decoding nor loading stands in the way of the multipliers.
//
// Sums may leave int32 on the way (2 * 127 * columns); the difference that counts does not, and
// vpdpbusd wraps.
#include "panel_avx512.h"

#include <string.h>

#include "simd_avx512.h"

namespace bitimpl {
namespace {

constexpr int64_t kLanes = 16;
constexpr int kTokens = 12;  // activation rows of one inner product
constexpr int64_t kPanelBlocks = 4;

// Vectors of activations (rows x planes) from which decoding a panel pays. Below, the kernels that
// decode for each few vectors are faster, two_bit's for longest: its decoding is a mask; groups add
// to what those do for each vector.
int64_t least_vectors(const LinearTask& task) {
  if (task.segments > 1) return 24;
  return task.format == BITIMPL_TWO_BIT ? 96 : 48;
}

int64_t panel_rows(const LinearTask& task) {
  const int64_t block = task.format == BITIMPL_BASE3 ? kBase3BlockRows : kTwoBitBlockRows;
  return kPanelBlocks * block;
}

// Where a panel lies in scratch. A step is four columns; segments have steps of their own.
struct PanelLayout {
  int64_t vectors;        // of 16 rows
  int64_t segment_steps;
  int64_t vector_bytes;   // all components and segments of one vector
  int64_t scales;         // offset of the scales, 16 floats a vector, component and segment
  int64_t vector_scales;  // floats of one vector
  int64_t bytes;

  explicit PanelLayout(const LinearTask& task) {
    vectors = panel_rows(task) / kLanes;
    segment_steps = (task.segment + 3) / 4;
    vector_bytes = task.components * task.segments * segment_steps * 64;
    scales = vectors * vector_bytes;
    vector_scales = task.components * task.segments * kLanes;
    bytes = scales + vectors * vector_scales * 4;
  }
};

struct Panel {
  uint8_t* bytes;
  float* scales;
  PanelLayout layout;
  int64_t first_row;
  int64_t rows;

  uint8_t* at(int64_t vector, int64_t component, int64_t segment, const LinearTask& task) const {
    const int64_t before = component * task.segments + segment;
    return bytes + vector * layout.vector_bytes + before * layout.segment_steps * 64;
  }
  float* scales_at(int64_t vector, int64_t component, int64_t segment, const LinearTask& task) const {
    const int64_t before = component * task.segments + segment;
    return scales + vector * layout.vector_scales + before * kLanes;
  }
};

// ---- decoding -------------------------------------------------------------------------------

// One byte a weight of up to 80 rows and 64 columns, row by row.
struct DecodedStep {
  alignas(64) uint8_t row[80][64];

  void set(int64_t at, __m512i bytes) { _mm512_store_si512(row[at], bytes); }
};

template <bool BASE3>
void decode_ternary(const LinearTask& task, const Panel& panel, int64_t component, int64_t segment,
                    int64_t k, int64_t n, DecodedStep& out) {
  const Base3Decoder decoder;
  const __m512i three = _mm512_set1_epi8(3);
  const __m512i one = _mm512_set1_epi8(1);
  const int64_t first_block = panel.first_row / Format<BASE3>::kBlockRows;
  int64_t row = 0;
  for (int64_t b = 0; row < panel.rows; ++b) {
    const Block block = block_at<BASE3>(task, first_block + b);
    const uint8_t* step = segment_codes(task, block, component, segment) + k * block.groups;
    for (int64_t g = 0; g < kBlockGroups; ++g, row += Format<BASE3>::kRows) {
      const __m512i bytes = load_group(step, block.groups, g, n);
      const __m512i digits = BASE3 ? decoder.two_bit(bytes) : bytes;
      out.set(row, _mm512_and_si512(digits, three));
      out.set(row + 1, _mm512_and_si512(_mm512_srli_epi16(digits, 2), three));
      out.set(row + 2, _mm512_and_si512(_mm512_srli_epi16(digits, 4), three));
      out.set(row + 3, _mm512_and_si512(_mm512_srli_epi16(digits, 6), three));
      if (BASE3) {
        const __mmask64 ones = _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(81));
        const __mmask64 twos = _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(static_cast<char>(162)));
        const __m512i fifth = _mm512_maskz_mov_epi8(ones, one);
        out.set(row + 4, _mm512_mask_add_epi8(fifth, twos, fifth, one));
      }
    }
  }
}

void decode_binary(const LinearTask& task, const Panel& panel, int64_t component, int64_t segment,
                   int64_t k, int64_t n, DecodedStep& out) {
  const __m512i two = _mm512_set1_epi8(2);
  const int64_t row_bytes = (task.cols + 7) / 8;
  const uint8_t* from = task.codes + (component * task.rows + panel.first_row) * row_bytes +
                        (segment * task.segment + k) / 8;
  for (int64_t row = 0; row < panel.rows; ++row, from += row_bytes) {
    uint64_t bits = 0;
    if (n == kStep) memcpy(&bits, from, 8);
    else memcpy(&bits, from, static_cast<size_t>((n + 7) / 8));
    out.set(row, _mm512_maskz_mov_epi8(bits, two));
  }
}

// Rows of a step to the vectors of the panel. Rows past the panel's hold anything: nobody reads
// their sums.
void store_step(const Panel& panel, const DecodedStep& step, int64_t component, int64_t segment,
                int64_t k, int64_t n, const LinearTask& task) {
  for (int64_t vector = 0; vector * kLanes < panel.rows; ++vector) {
    __m512i rows[16], words[16];
    BITIMPL_UNROLL
    for (int r = 0; r < 16; ++r) rows[r] = _mm512_load_si512(step.row[vector * kLanes + r]);
    transpose_words(rows, words);
    uint8_t* to = panel.at(vector, component, segment, task) + k * kLanes;
    if (n == kStep) {
      BITIMPL_UNROLL
      for (int s = 0; s < 16; ++s) _mm512_store_si512(to + 64 * s, words[s]);
    } else {
      for (int64_t s = 0; s < (n + 3) / 4; ++s) _mm512_store_si512(to + 64 * s, words[s]);
    }
  }
}

void load_panel_scales(const LinearTask& task, const Panel& panel) {
  for (int64_t vector = 0; vector * kLanes < panel.rows; ++vector) {
    for (int64_t c = 0; c < task.components; ++c) {
      for (int64_t s = 0; s < task.segments; ++s) {
        float* to = panel.scales_at(vector, c, s, task);
        for (int64_t r = 0; r < kLanes; ++r) {
          const int64_t row = vector * kLanes + r;
          to[r] = row < panel.rows ? scale_at(task, c, panel.first_row + row, s) : 0.0f;
        }
      }
    }
  }
}

void load_panel(const LinearTask& task, const Panel& panel) {
  DecodedStep step;
  for (int64_t c = 0; c < task.components; ++c) {
    for (int64_t s = 0; s < task.segments; ++s) {
      const int64_t columns = segment_columns(task, s);
      for (int64_t k = 0; k < columns; k += kStep) {
        const int64_t n = columns - k < kStep ? columns - k : kStep;
        if (task.format == BITIMPL_BASE3) decode_ternary<true>(task, panel, c, s, k, n, step);
        else if (task.format == BITIMPL_TWO_BIT) decode_ternary<false>(task, panel, c, s, k, n, step);
        else decode_binary(task, panel, c, s, k, n, step);
        store_step(panel, step, c, s, k, n, task);
      }
    }
  }
  load_panel_scales(task, panel);
}

// ---- multiplying ----------------------------------------------------------------------------

// V vectors of rows times T activation rows over `steps` steps of four columns: sums[v * T + t]. A
// function of its own, so that nothing but the accumulators competes for registers; every third
// activation row has a pointer, the two after it a multiple of the stride.
template <int V, int T>
__attribute__((noinline)) void multiply(const uint8_t* panel, int64_t vector_bytes, const int8_t* q,
                                        int64_t stride, int64_t steps, __m512i* sums) {
  constexpr int kPointers = (T + 2) / 3;
  const int8_t* base[kPointers];
  BITIMPL_UNROLL
  for (int i = 0; i < kPointers; ++i) base[i] = q + 3 * i * stride;
  __m512i sum[V][T];
  BITIMPL_UNROLL
  for (int v = 0; v < V; ++v) {
    BITIMPL_UNROLL
    for (int t = 0; t < T; ++t) sum[v][t] = _mm512_setzero_si512();
  }
  for (int64_t s = 0; s < steps; ++s, panel += 64) {
    __m512i weights[V];
    BITIMPL_UNROLL
    for (int v = 0; v < V; ++v) weights[v] = _mm512_load_si512(panel + v * vector_bytes);
    BITIMPL_UNROLL
    for (int t = 0; t < T; ++t) {
      const __m512i x = broadcast4(base[t / 3] + (t % 3) * stride);
      BITIMPL_UNROLL
      for (int v = 0; v < V; ++v) accumulate(sum[v][t], weights[v], x);
    }
    BITIMPL_UNROLL
    for (int i = 0; i < kPointers; ++i) base[i] += 4;
  }
  BITIMPL_UNROLL
  for (int v = 0; v < V; ++v) {
    BITIMPL_UNROLL
    for (int t = 0; t < T; ++t) sums[v * T + t] = sum[v][t];
  }
}

// float(256 * hi + lo), exact in float64 and rounded once.
inline __m512 combine_planes(__m512i hi, __m512i lo) {
  const __m512d scale = _mm512_set1_pd(256.0);
  __m256 half[2];
  BITIMPL_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m256i h = i == 0 ? _mm512_castsi512_si256(hi) : _mm512_extracti64x4_epi64(hi, 1);
    const __m256i l = i == 0 ? _mm512_castsi512_si256(lo) : _mm512_extracti64x4_epi64(lo, 1);
    const __m512d high = _mm512_mul_pd(_mm512_cvtepi32_pd(h), scale);
    half[i] = _mm512_cvtpd_ps(_mm512_add_pd(high, _mm512_cvtepi32_pd(l)));
  }
  return _mm512_insertf32x8(_mm512_castps256_ps512(half[0]), half[1], 1);
}

// The usual case of `compute`: 8-bit activations and one scale a row.
template <int V, int T>
void compute_plain(const LinearTask& task, const Panel& panel, int64_t vector, int64_t token) {
  const Activations& x = task.x;
  const int8_t* q = x.q[0] + token * x.q_stride;
  __m512i dot[V * T];
  multiply<V, T>(panel.at(vector, 0, 0, task), panel.layout.vector_bytes, q, x.q_stride,
                 panel.layout.segment_steps, dot);
  for (int v = 0; v < V; ++v) {
    const int64_t row = (vector + v) * kLanes;
    const int64_t count = panel.rows - row < kLanes ? panel.rows - row : kLanes;
    const __m512 scale = _mm512_loadu_ps(panel.scales_at(vector + v, 0, 0, task));
    for (int t = 0; t < T; ++t) {
      const __m512i offset = _mm512_set1_epi32(x.sums[0][token + t]);
      const __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(dot[v * T + t], offset));
      store_vector(task, token + t, panel.first_row + row, count, _mm512_mul_ps(scale, value));
    }
  }
}

// y of V vectors of the panel for T tokens.
template <int V, int T>
void compute(const LinearTask& task, const Panel& panel, int64_t vector, int64_t token) {
  const Activations& x = task.x;
  __m512 total[V * T];
  for (int i = 0; i < V * T; ++i) total[i] = _mm512_setzero_ps();
  for (int64_t c = 0; c < task.components; ++c) {
    for (int64_t s = 0; s < task.segments; ++s) {
      const int64_t steps = (segment_columns(task, s) + 3) / 4;
      const uint8_t* bytes = panel.at(vector, c, s, task);
      __m512i dot[2][V * T];
      for (int p = 0; p < x.planes; ++p) {
        const int8_t* q = x.q[p] + token * x.q_stride + s * task.segment;
        multiply<V, T>(bytes, panel.layout.vector_bytes, q, x.q_stride, steps, dot[p]);
        for (int t = 0; t < T; ++t) {
          const __m512i offset = _mm512_set1_epi32(x.sums[p][(token + t) * task.segments + s]);
          for (int v = 0; v < V; ++v) dot[p][v * T + t] = _mm512_sub_epi32(dot[p][v * T + t], offset);
        }
      }
      for (int v = 0; v < V; ++v) {
        const __m512 scale = _mm512_loadu_ps(panel.scales_at(vector + v, c, s, task));
        for (int i = v * T; i < (v + 1) * T; ++i) {
          const __m512 value =
              x.planes == 2 ? combine_planes(dot[0][i], dot[1][i]) : _mm512_cvtepi32_ps(dot[0][i]);
          total[i] = _mm512_add_ps(total[i], _mm512_mul_ps(scale, value));
        }
      }
    }
  }
  for (int v = 0; v < V; ++v) {
    const int64_t row = (vector + v) * kLanes;
    const int64_t count = panel.rows - row < kLanes ? panel.rows - row : kLanes;
    for (int t = 0; t < T; ++t) {
      store_vector(task, token + t, panel.first_row + row, count, total[v * T + t]);
    }
  }
}

using Compute = void (*)(const LinearTask&, const Panel&, int64_t, int64_t);
#define BITIMPL_TOKENS(f, V)                                                                 \
  {f<V, 1>, f<V, 2>, f<V, 3>, f<V, 4>, f<V, 5>, f<V, 6>, f<V, 7>, f<V, 8>, f<V, 9>, f<V, 10>, \
   f<V, 11>, f<V, 12>}
constexpr Compute kPlain[2][kTokens] = {BITIMPL_TOKENS(compute_plain, 1),
                                        BITIMPL_TOKENS(compute_plain, 2)};
constexpr Compute kAny[2][kTokens] = {BITIMPL_TOKENS(compute, 1), BITIMPL_TOKENS(compute, 2)};
#undef BITIMPL_TOKENS

void multiply_panel(const LinearTask& task, const Panel& panel, const Tile& tile) {
  const int64_t vectors = (panel.rows + kLanes - 1) / kLanes;
  const bool plain = task.components * task.segments * task.x.planes == 1;
  const auto& kernels = plain ? kPlain : kAny;
  for (int64_t token = tile.token_begin; token < tile.token_end;) {
    // Equal shares: 16 tokens are 8 + 8, not 12 + 4.
    const int64_t left = tile.token_end - token;
    const int64_t shares = (left + kTokens - 1) / kTokens;
    const int64_t tokens = (left + shares - 1) / shares;
    for (int64_t vector = 0; vector < vectors; vector += 2) {
      kernels[vectors - vector > 1][tokens - 1](task, panel, vector, token);
    }
    token += tokens;
  }
}

}  // namespace

bool panel_serves_avx512(const LinearTask& task) {
  return task.x.planes > 0 && task.x.rows * task.x.planes >= least_vectors(task);
}

int64_t panel_scratch_avx512(const LinearTask& task) { return PanelLayout(task).bytes; }

void panel_avx512(const LinearTask& task, const Tile& tile) {
  const int64_t step = panel_rows(task);
  const int64_t block_rows = step / kPanelBlocks;
  const int64_t last = tile.block_end * block_rows < task.rows ? tile.block_end * block_rows : task.rows;
  Panel panel = {static_cast<uint8_t*>(tile.scratch), nullptr, PanelLayout(task), 0, 0};
  panel.scales = reinterpret_cast<float*>(panel.bytes + panel.layout.scales);
  for (panel.first_row = tile.block_begin * block_rows; panel.first_row < last;
       panel.first_row += step) {
    panel.rows = last - panel.first_row < step ? last - panel.first_row : step;
    load_panel(task, panel);
    multiply_panel(task, panel, tile);
  }
}

}  // namespace bitimpl
