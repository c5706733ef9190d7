// Products of bits of a whole warpgroup, which only sm_90a has, both operands in shared memory; and what they
// do, for the emulator.
#ifndef BITIMPL_CUDA_HOPPER_BITS_CUH
#define BITIMPL_CUDA_HOPPER_BITS_CUH

#include "hopper.cuh"

namespace bitimpl {
namespace cuda {

#ifdef BITIMPL_EMULATOR
namespace emulated {

constexpr int kOperandWords = 8;  // 256 bits

inline void multiply_bits(const Product& p) {
  std::vector<uint32_t> b(static_cast<size_t>(p.columns * kOperandWords));
  for (int i = 0; i < p.columns * kOperandWords; ++i) {
    b[static_cast<size_t>(i)] = word_of(p.b, i / kOperandWords, i % kOperandWords * 4);
  }
  for (int row = 0; row < 16; ++row) {
    uint32_t a[kOperandWords];
    for (int i = 0; i < kOperandWords; ++i) a[i] = word_of(p.a_rows, p.first_row + row, 4 * i);
    for (int column = 0; column < p.columns; ++column) {
      const uint32_t* of_column = b.data() + column * kOperandWords;
      int32_t* d = element_of(p, row, column);
      int32_t set = p.add ? *d : 0;
      for (int i = 0; i < kOperandWords; ++i) set += count_bits(a[i] & of_column[i]);
      *d = set;
    }
  }
}

}  // namespace emulated
#else
#define BITIMPL_FOUR(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define BITIMPL_SIXTEEN(d, i) \
  BITIMPL_FOUR(d, i), BITIMPL_FOUR(d, i + 4), BITIMPL_FOUR(d, i + 8), BITIMPL_FOUR(d, i + 12)
#endif

// d [64, COLUMNS] = the set bits of row m of a and row n of b together, over 256 columns, plus d where `add`.
// a and b: matrix descriptors of rows along k. d's fragments are those of wgmma_layout.h; d may not be
// touched before the group has been waited for, nor the operands overwritten.
template <int COLUMNS>
__device__ __forceinline__ void multiply_bits(int32_t (&d)[COLUMNS / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(COLUMNS == 256 || COLUMNS == 128, "one instruction each");
#ifdef BITIMPL_EMULATOR
  struct Mine {
    int32_t* d;
    uint64_t a, b;
    bool add;
  } mine = {d, a, b, add};
  emulator::meet(
      [](void* const* lanes) {
        const Mine* first = static_cast<Mine*>(lanes[0]);
        const int first_row = static_cast<int>(threadIdx.x) / kWarp % wgmma::kGroupWarps * 16;
        const int group = emulated::this_warp().group;
        emulated::Product product = {
            COLUMNS, group, first->add, first->b, emulated::multiply_bits, {}, {}, first->a, first_row};
        for (int i = 0; i < kWarp; ++i) product.d[i] = static_cast<Mine*>(lanes[i])->d;
        emulated::begin(product);
      },
      &mine);
#else
  if constexpr (COLUMNS == 256) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k256.row.col.s32.b1.b1.and.popc "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "
        "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "
        "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "
        "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, p;\n}\n"
        : BITIMPL_SIXTEEN(d, 0), BITIMPL_SIXTEEN(d, 16), BITIMPL_SIXTEEN(d, 32), BITIMPL_SIXTEEN(d, 48),
          BITIMPL_SIXTEEN(d, 64), BITIMPL_SIXTEEN(d, 80), BITIMPL_SIXTEEN(d, 96), BITIMPL_SIXTEEN(d, 112)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k256.row.col.s32.b1.b1.and.popc "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63}, "
        "%64, %65, p;\n}\n"
        : BITIMPL_SIXTEEN(d, 0), BITIMPL_SIXTEEN(d, 16), BITIMPL_SIXTEEN(d, 32), BITIMPL_SIXTEEN(d, 48)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));
  }
#endif
}

#undef BITIMPL_FOUR
#undef BITIMPL_SIXTEEN

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_HOPPER_BITS_CUH
