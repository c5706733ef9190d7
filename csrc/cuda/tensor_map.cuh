// Matrices of words in global memory as the copy engine of sm_90a sees them: a description (made on the host,
// passed to the kernel by value as a __grid_constant__ parameter, so that a captured graph holds it) and
// copies of boxes, 128 bytes wide, into shared memory. What lies outside the matrix arrives as zeros. Beside
// it what it does, for the emulator.
#ifndef BITIMPL_CUDA_TENSOR_MAP_CUH
#define BITIMPL_CUDA_TENSOR_MAP_CUH

#include "hopper.cuh"

#ifndef BITIMPL_EMULATOR
#include <cuda.h>
#endif

namespace bitimpl {
namespace cuda {

constexpr int kBoxWords = 32;  // 128 bytes: the width of the swizzle
constexpr int kMostBoxRows = 256;

// A matrix whose rows are contiguous: [rows, row_words], `stride` words from row to row.
struct WordMatrix {
  const uint32_t* words;
  int64_t rows;
  int64_t row_words;
  int64_t stride;
};

#ifdef BITIMPL_EMULATOR

struct TensorMap {
  WordMatrix matrix;
  int box_rows;
};

namespace emulated {

// Row r of a box lies at 128 r, its 16 bytes c at place c ^ r % 8: bits 7 .. 9 of the address into bits 4 ..
// 6.
inline void move_box(const Copy& copy) {
  const TensorMap& map = *static_cast<const TensorMap*>(copy.from);
  const WordMatrix& m = map.matrix;
  char* shared = static_cast<char*>(emulator::shared());
  const uint32_t start = static_cast<uint32_t>(static_cast<char*>(copy.to) - shared);
  for (int row = 0; row < map.box_rows; ++row) {
    for (int i = 0; i < kBoxWords; ++i) {
      const int64_t from_row = int64_t{copy.box[1]} + row;
      const int64_t from_word = int64_t{copy.box[0]} + i;
      const bool inside = from_row >= 0 && from_row < m.rows && from_word >= 0 && from_word < m.row_words;
      const uint32_t word = inside ? m.words[from_row * m.stride + from_word] : 0;
      const uint32_t logical = start + static_cast<uint32_t>(row * kBoxWords + i) * 4;
      const uint32_t address = logical ^ ((logical >> 7 & 7) << 4);
      memcpy(shared + address, &word, sizeof word);
    }
  }
}

}  // namespace emulated

#else

using TensorMap = CUtensorMap;

#endif

// ---- host ------------------------------------------------------------------------------------------------

// Describes a matrix to be copied in boxes of `box_rows` rows. BITIMPL_OK, or fail(...).
inline int describe_tensor(const WordMatrix& m, int box_rows, TensorMap* map) {
#ifdef BITIMPL_EMULATOR
  // What the driver would refuse.
  const bool wrong = reinterpret_cast<uintptr_t>(m.words) % 16 != 0 || m.stride % 4 != 0 || m.rows < 1 ||
                     m.row_words < 1 || m.rows > int64_t{1} << 32 || m.row_words > int64_t{1} << 32 ||
                     m.stride >= int64_t{1} << 38 || box_rows < 1 || box_rows > kMostBoxRows;
  if (wrong) return fail(BITIMPL_INVALID_ARGUMENT, "emulated driver: no such tensor");
  *map = {m, box_rows};
  return BITIMPL_OK;
#else
  // The driver's function, asked for at run time: the library does not link the driver.
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t status =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    const bool there = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (encode == nullptr) {
    return fail(BITIMPL_UNSUPPORTED,
                "the driver has no cuTensorMapEncodeTiled: install one for CUDA 12.0 or later");
  }
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(m.row_words), static_cast<cuuint64_t>(m.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(m.stride) * sizeof(uint32_t)};
  const cuuint32_t box[2] = {kBoxWords, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult made =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_INT32, 2, const_cast<uint32_t*>(m.words), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (made == CUDA_SUCCESS) return BITIMPL_OK;
  return fail(BITIMPL_INVALID_ARGUMENT, "the driver describes no tensor of %lld x %lld words: error %d",
              static_cast<long long>(m.rows), static_cast<long long>(m.row_words), static_cast<int>(made));
#endif
}

// ---- device ----------------------------------------------------------------------------------------------

// Copies the box that begins at a word and a row of the matrix; counted in full, zeros included, off what the
// barrier's phase waits for. to_shared: a multiple of 1024, so that the pattern of the swizzle begins there.
// By one thread.
__device__ __forceinline__ void copy_box(void* to_shared, const TensorMap& map, int32_t word, int32_t row,
                                         uint64_t* barrier) {
#ifdef BITIMPL_EMULATOR
  const uint32_t bytes = static_cast<uint32_t>(map.box_rows * kBoxWords) * 4;
  emulated::begin({to_shared, &map, bytes, reinterpret_cast<emulated::Barrier*>(barrier), emulated::move_box,
                   {word, row}});
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];"
      :
      : "r"(shared_address(to_shared)), "l"(&map), "r"(word), "r"(row), "r"(shared_address(barrier))
      : "memory");
#endif
}

// Before the first copy: the description's own bytes are on their way.
__device__ __forceinline__ void prefetch_map([[maybe_unused]] const TensorMap& map) {
#ifndef BITIMPL_EMULATOR
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_TENSOR_MAP_CUH
