// Codes to packed bytes and back, and packed bytes to floats. A thread has four columns of a row group (a
// word of packed bytes) or eight of a binary row (a byte) in hand, so that neighbours read and write side by
// side; everything is read once and written once.
#include "../common/checks.h"
#include "bytes.cuh"
#include "weight.h"

namespace bitimpl {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksAMultiprocessor = 16;
constexpr int kByteColumns = 8;

// Threads for `units`, each of which takes every so-many-th one.
Grid grid_for(int64_t units, int32_t layers, const Device& device, Stream stream) {
  const int64_t most = static_cast<int64_t>(device.multiprocessors) * kBlocksAMultiprocessor;
  const int64_t blocks = least(ceil_div<int64_t>(units, kThreads), most);
  return {{static_cast<uint32_t>(blocks), static_cast<uint32_t>(layers)}, {kThreads}, 0, stream};
}

__device__ __forceinline__ int64_t first_unit() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t unit_stride() { return static_cast<int64_t>(gridDim.x) * kThreads; }

// ---- two_bit and base3 -------------------------------------------------------------------------------

// 0, 1 or 2 for each byte: its sign, and one.
__device__ __forceinline__ uint32_t digits_of_codes(uint32_t codes) {
  const uint32_t negative = codes >> 7 & 0x01010101u;
  const uint32_t nonzero = (((codes & 0x7f7f7f7fu) + 0x7f7f7f7fu) | codes) >> 7 & 0x01010101u;
  return 0x01010101u + nonzero - 2 * negative;
}

template <int FORMAT>
__global__ void __launch_bounds__(kThreads) pack_kernel(Weight w, const int8_t* codes) {
  const int32_t component = static_cast<int32_t>(blockIdx.y);
  const int64_t words = w.groups * w.steps * kStepWords;
  for (int64_t unit = first_unit(); unit < words; unit += unit_stride()) {
    const Word at = word_at(w, unit);
    if (at.columns <= 0) continue;
    uint32_t packed = 0;
#pragma unroll
    for (int j = 0; j < Digits<FORMAT>::kRows; ++j) {
      const int64_t row = at.group * Digits<FORMAT>::kRows + j;
      uint32_t four[1] = {0};  // of a missing row: zeros
      if (row < w.rows) load_bytes(codes + (component * w.rows + row) * w.cols + at.first, at.columns, four);
      packed += in_place<FORMAT>(digits_of_codes(four[0]), j);
    }
    const uint8_t* to = codes_at(w, at.group, component, at.step) + at.column;
    store_bytes(const_cast<uint8_t*>(to), packed, at.columns);
  }
}

template <int FORMAT>
__global__ void __launch_bounds__(kThreads) unpack_kernel(Weight w, int8_t* codes) {
  const int32_t component = static_cast<int32_t>(blockIdx.y);
  const int64_t words = w.groups * w.steps * kStepWords;
  for (int64_t unit = first_unit(); unit < words; unit += unit_stride()) {
    const Word at = word_at(w, unit);
    if (at.columns <= 0) continue;
    uint32_t word[1];
    load_bytes(codes_at(w, at.group, component, at.step) + at.column, at.columns, word);
    uint32_t digits[Digits<FORMAT>::kRows];
    digits_of<FORMAT>(word[0], digits);
#pragma unroll
    for (int j = 0; j < Digits<FORMAT>::kRows; ++j) {
      const int64_t row = at.group * Digits<FORMAT>::kRows + j;
      if (row >= w.rows) break;
      // One less in every byte: the high bits keep the borrows apart.
      const uint32_t four = ((digits[j] | 0x80808080u) - 0x01010101u) ^ 0x80808080u;
      store_bytes(codes + (component * w.rows + row) * w.cols + at.first, four, at.columns);
    }
  }
}

// Where floats go: rows [begin, end) of the weight.
struct Target {
  void* out;
  int32_t dtype;
  int64_t stride;
  int64_t begin;
  int64_t end;
};

template <int FORMAT>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(Weight w, Target target) {
  constexpr int kRows = Digits<FORMAT>::kRows;
  const int64_t first_group = target.begin / kRows;
  const int64_t words = (ceil_div<int64_t>(target.end, kRows) - first_group) * w.steps * kStepWords;
  for (int64_t unit = first_unit(); unit < words; unit += unit_stride()) {
    Word at = word_at(w, unit);
    if (at.columns <= 0) continue;
    at.group += first_group;
    float sums[kRows][4] = {};
    for (int32_t component = 0; component < w.components; ++component) {
      uint32_t word[1];
      load_bytes(codes_at(w, at.group, component, at.step) + at.column, at.columns, word);
      uint32_t digits[kRows];
      digits_of<FORMAT>(word[0], digits);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int64_t row = at.group * kRows + j;
        if (row < target.begin || row >= target.end) continue;
        const float scale = scale_at(w, component, row, at.step.segment);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int32_t code = static_cast<int32_t>(digits[j] >> 8 * i & 0xff) - 1;
          const float value = static_cast<float>(code) * scale;
          sums[j][i] = component == 0 ? value : sums[j][i] + value;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t row = at.group * kRows + j;
      if (row < target.begin || row >= target.end) continue;
      store_floats(target.out, target.dtype, (row - target.begin) * target.stride + at.first, sums[j],
                   at.columns);
    }
  }
}

// ---- binary ------------------------------------------------------------------------------------------

// Eight columns of a row.
struct Octet {
  int64_t row;
  int64_t first;    // column
  int32_t columns;  // 1 to 8
  int64_t byte;     // of a component
};

__device__ __forceinline__ Octet octet_at(const Weight& w, int64_t index) {
  const int32_t row_bytes = static_cast<int32_t>(ceil_div<int64_t>(w.cols, kByteColumns));
  Octet octet;
  octet.row = divide(index, row_bytes);
  octet.first = (index - octet.row * row_bytes) * kByteColumns;
  octet.columns = static_cast<int32_t>(least<int64_t>(kByteColumns, w.cols - octet.first));
  octet.byte = index;
  return octet;
}

// The bytes of a component.
__host__ __device__ __forceinline__ int64_t octets_of(const Weight& w) {
  return w.rows * ceil_div<int64_t>(w.cols, kByteColumns);
}

__global__ void __launch_bounds__(kThreads) pack_bits_kernel(Weight w, const int8_t* codes) {
  const int32_t component = static_cast<int32_t>(blockIdx.y);
  for (int64_t unit = first_unit(); unit < octets_of(w); unit += unit_stride()) {
    const Octet at = octet_at(w, unit);
    uint32_t eight[2];
    load_bytes(codes + (component * w.rows + at.row) * w.cols + at.first, at.columns, eight);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kByteColumns; ++i) {
      const uint32_t negative = eight[i / 4] >> (8 * (i % 4) + 7) & 1;
      if (i < at.columns) bits |= (negative ^ 1) << i;
    }
    const_cast<uint8_t*>(w.codes)[component * octets_of(w) + at.byte] = static_cast<uint8_t>(bits);
  }
}

__global__ void __launch_bounds__(kThreads) unpack_bits_kernel(Weight w, int8_t* codes) {
  const int32_t component = static_cast<int32_t>(blockIdx.y);
  for (int64_t unit = first_unit(); unit < octets_of(w); unit += unit_stride()) {
    const Octet at = octet_at(w, unit);
    const uint32_t bits = w.codes[component * octets_of(w) + at.byte];
    int8_t* to = codes + (component * w.rows + at.row) * w.cols + at.first;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t four = 0;  // 1 or -1, a byte each
#pragma unroll
      for (int i = 0; i < 4; ++i) four |= (bits >> (4 * half + i) & 1 ? 0x01u : 0xffu) << 8 * i;
      store_bytes(to + 4 * half, four, at.columns - 4 * half);
    }
  }
}

__global__ void __launch_bounds__(kThreads) dequantize_bits_kernel(Weight w, Target target) {
  const int64_t octets = octets_of(w) / w.rows;
  const int64_t end = target.end * octets;
  for (int64_t unit = target.begin * octets + first_unit(); unit < end; unit += unit_stride()) {
    const Octet at = octet_at(w, unit);
    const int32_t segment = static_cast<int32_t>(divide(at.first, static_cast<int32_t>(w.segment)));
    float sums[2][4] = {};
    for (int32_t component = 0; component < w.components; ++component) {
      const uint32_t bits = w.codes[component * octets_of(w) + at.byte];
      const float scale = scale_at(w, component, at.row, segment);
#pragma unroll
      for (int i = 0; i < kByteColumns; ++i) {
        const float value = bits >> i & 1 ? scale : -scale;
        sums[i / 4][i % 4] = component == 0 ? value : sums[i / 4][i % 4] + value;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t to = (at.row - target.begin) * target.stride + at.first + 4 * half;
      store_floats(target.out, target.dtype, to, sums[half], at.columns - 4 * half);
    }
  }
}

// ---- starts ------------------------------------------------------------------------------------------

int64_t words_of(const Weight& w, int64_t groups) { return groups * w.steps * kStepWords; }

int start_pack(const Weight& w, const int8_t* codes, const Device& device, Stream stream) {
  if (w.format == BITIMPL_BINARY) {
    return launch(pack_bits_kernel, grid_for(octets_of(w), w.components, device, stream), w, codes);
  }
  const Grid grid = grid_for(words_of(w, w.groups), w.components, device, stream);
  if (w.format == BITIMPL_BASE3) return launch(pack_kernel<BITIMPL_BASE3>, grid, w, codes);
  return launch(pack_kernel<BITIMPL_TWO_BIT>, grid, w, codes);
}

int start_unpack(const Weight& w, int8_t* codes, const Device& device, Stream stream) {
  if (w.format == BITIMPL_BINARY) {
    return launch(unpack_bits_kernel, grid_for(octets_of(w), w.components, device, stream), w, codes);
  }
  const Grid grid = grid_for(words_of(w, w.groups), w.components, device, stream);
  if (w.format == BITIMPL_BASE3) return launch(unpack_kernel<BITIMPL_BASE3>, grid, w, codes);
  return launch(unpack_kernel<BITIMPL_TWO_BIT>, grid, w, codes);
}

int start_dequantize(const Weight& w, const Target& target, const Device& device, Stream stream) {
  if (w.format == BITIMPL_BINARY) {
    const int64_t octets = octets_of(w) / w.rows * (target.end - target.begin);
    return launch(dequantize_bits_kernel, grid_for(octets, 1, device, stream), w, target);
  }
  const int64_t groups = ceil_div<int64_t>(target.end, w.per_byte) - target.begin / w.per_byte;
  const Grid grid = grid_for(words_of(w, groups), 1, device, stream);
  if (w.format == BITIMPL_BASE3) return launch(dequantize_kernel<BITIMPL_BASE3>, grid, w, target);
  return launch(dequantize_kernel<BITIMPL_TWO_BIT>, grid, w, target);
}

int check_target(const bitimpl_weight& w, const Target& target) {
  if (target.begin < 0 || target.end < target.begin || target.end > w.rows) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "rows [%lld, %lld) of a weight with %lld: pass 0 <= row_begin <= row_end <= rows",
                show(target.begin), show(target.end), show(w.rows));
  }
  const bitimpl_matrix out = {target.out, target.dtype, 0, target.end - target.begin, w.cols, target.stride};
  return check_matrix(&out, "out");
}

}  // namespace
}  // namespace cuda
}  // namespace bitimpl

using namespace bitimpl;
using namespace bitimpl::cuda;

extern "C" {

int bitimpl_cuda_pack(int32_t format, int32_t components, int64_t rows, int64_t cols, int64_t group_size,
                      const int8_t* codes, uint8_t* out, int64_t out_bytes, int32_t device, void* stream) {
  clear_error();
  bitimpl_weight packed;
  const int status = describe_packed(format, components, rows, cols, group_size, codes, out, out_bytes, &packed);
  if (status != BITIMPL_OK) return status;
  const Device* found = device_at(device);
  if (found == nullptr) return last_status();
  const DeviceGuard current(device);
  return start_pack(describe(packed), codes, *found, stream);
}

int bitimpl_cuda_unpack(const bitimpl_weight* weight, int8_t* codes, int32_t device, void* stream) {
  clear_error();
  int status = check_weight(weight, false);
  if (status == BITIMPL_OK) status = check_codes(codes);
  if (status != BITIMPL_OK) return status;
  const Device* found = device_at(device);
  if (found == nullptr) return last_status();
  const DeviceGuard current(device);
  return start_unpack(describe(*weight), codes, *found, stream);
}

int bitimpl_cuda_dequantize(const bitimpl_weight* weight, int64_t row_begin, int64_t row_end, void* out,
                            int32_t out_dtype, int64_t out_row_stride, int32_t device, void* stream) {
  clear_error();
  const Target target = {out, out_dtype, out_row_stride, row_begin, row_end};
  int status = check_weight(weight, true);
  if (status == BITIMPL_OK) status = check_target(*weight, target);
  if (status != BITIMPL_OK) return status;
  const Device* found = device_at(device);
  if (found == nullptr) return last_status();
  if (row_begin == row_end) return BITIMPL_OK;
  const DeviceGuard current(device);
  return start_dequantize(describe(*weight), target, *found, stream);
}

}  // extern "C"
