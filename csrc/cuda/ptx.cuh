// Every instruction that C++ has no word for: its PTX, and beside it what it does, for the emulator.
// Layouts of fragments are those of the PTX manual, "Matrix fragments for mma.m16n8k32".
#ifndef BITIMPL_CUDA_PTX_CUH
#define BITIMPL_CUDA_PTX_CUH

#include <string.h>

#include "device.cuh"

#ifdef BITIMPL_EMULATOR
#include "../common/float16.h"
#endif

namespace bitimpl {
namespace cuda {

// ---- integers ------------------------------------------------------------------------------------

// sum + a0 * b0 + .. + a3 * b3, four unsigned bytes times four signed ones, modulo 2^32.
__device__ __forceinline__ int32_t dp4a(uint32_t a, uint32_t b, int32_t sum) {
#ifdef BITIMPL_EMULATOR
  uint32_t total = static_cast<uint32_t>(sum);
  for (int i = 0; i < 32; i += 8) {
    total += static_cast<uint32_t>(static_cast<int32_t>(a >> i & 0xff) * static_cast<int8_t>(b >> i & 0xff));
  }
  return static_cast<int32_t>(total);
#else
  int32_t d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(sum));
  return d;
#endif
}

// Byte i of the result is byte (selector >> 4i & 7) of the eight bytes b:a, a the lower four.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef BITIMPL_EMULATOR
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return result;
#else
  return __byte_perm(a, b, selector);
#endif
}

// The same value, of which the compiler knows nothing: what follows from it is computed where it is written, not
// ahead of a loop whose registers it would take.
__device__ __forceinline__ int32_t opaque(int32_t value) {
#ifndef BITIMPL_EMULATOR
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// round_half_even(x) for |x| < 2^31.
__device__ __forceinline__ int32_t round_to_int(float x) {
#ifdef BITIMPL_EMULATOR
  return static_cast<int32_t>(lrintf(x));
#else
  return __float2int_rn(x);
#endif
}

// ---- float32 without fused multiply-add, and its 16-bit forms ---------------------------------------

__device__ __forceinline__ uint32_t bits_of(float x) {
#ifdef BITIMPL_EMULATOR
  return bits_from_float(x);
#else
  return __float_as_uint(x);
#endif
}

__device__ __forceinline__ float float_of_bits(uint32_t bits) {
#ifdef BITIMPL_EMULATOR
  return float_from_bits(bits);
#else
  return __uint_as_float(bits);
#endif
}

__device__ __forceinline__ float float_of_f16(uint16_t half) {
#ifdef BITIMPL_EMULATOR
  return float_from_f16(half);
#else
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
#endif
}

__device__ __forceinline__ float float_of_bf16(uint16_t half) {
#ifdef BITIMPL_EMULATOR
  return float_from_bf16(half);
#else
  return __uint_as_float(static_cast<uint32_t>(half) << 16);
#endif
}

// Rounded to nearest even.
__device__ __forceinline__ uint16_t f16_of_float(float x) {
#ifdef BITIMPL_EMULATOR
  return f16_from_float(x);
#else
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
#endif
}

__device__ __forceinline__ uint16_t bf16_of_float(float x) {
#ifdef BITIMPL_EMULATOR
  return bf16_from_float(x);
#else
  uint16_t half;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
#endif
}

// ---- memory ----------------------------------------------------------------------------------------

// 16 aligned bytes that nobody will read again and no kernel in flight writes: past the first cache.
__device__ __forceinline__ uint4 load_once(const void* from) {
#ifdef BITIMPL_EMULATOR
  uint4 value;
  memcpy(&value, __builtin_assume_aligned(from, 16), sizeof value);
  return value;
#else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
#endif
}

// Asks for the bytes around an address, which will be read soon, to come to the second cache.
__device__ __forceinline__ void prefetch(const void* from) {
#ifdef BITIMPL_EMULATOR
  static_cast<void>(from);
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}

// 16 or 8 aligned bytes, in one instruction whatever else is stored around it.
__device__ __forceinline__ void store_words(void* to, const uint4& v) {
#ifdef BITIMPL_EMULATOR
  memcpy(__builtin_assume_aligned(to, 16), &v, sizeof v);
#else
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}

__device__ __forceinline__ void store_words(void* to, const uint2& v) {
#ifdef BITIMPL_EMULATOR
  memcpy(__builtin_assume_aligned(to, 8), &v, sizeof v);
#else
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory");
#endif
}

// Begins a copy of 16 bytes from global to shared memory, both aligned: `valid` of them (0 to 16) from
// `from`, the rest zero. Done when wait_for_copies() says so, and seen by other threads after a barrier.
__device__ __forceinline__ void copy_async(void* to_shared, const void* from, int valid = 16) {
#ifdef BITIMPL_EMULATOR
  emulator::copy_later(to_shared, from, valid);
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
#endif
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void commit_copies() {
#ifdef BITIMPL_EMULATOR
  emulator::end_group();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's groups of copies, all but the last BUT.
template <int BUT>
__device__ __forceinline__ void wait_for_copies() {
#ifdef BITIMPL_EMULATOR
  emulator::wait_for_groups(BUT);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(BUT) : "memory");
#endif
}

__device__ __forceinline__ int32_t add_atomically(int32_t* to, int32_t value) {
#ifdef BITIMPL_EMULATOR
  const int32_t before = *to;
  *to = static_cast<int32_t>(static_cast<uint32_t>(before) + static_cast<uint32_t>(value));
  return before;
#else
  return atomicAdd(to, value);
#endif
}

// ---- exchange within a warp: all 32 lanes take part ---------------------------------------------------

// `value` of lane (own lane ^ mask). T: 4 or 8 bytes.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
#ifdef BITIMPL_EMULATOR
  struct Mine {
    T value, result;
    int mask;
  } mine = {value, value, mask};
  emulator::meet(
      [](void* const* lanes) {
        for (int i = 0; i < kWarp; ++i) {
          Mine* lane = static_cast<Mine*>(lanes[i]);
          lane->result = static_cast<Mine*>(lanes[i ^ lane->mask])->value;
        }
      },
      &mine);
  return mine.result;
#else
  return __shfl_xor_sync(0xffffffffu, value, mask);
#endif
}

// `value` of lane `from`.
template <class T>
__device__ __forceinline__ T shuffle_from(T value, int from) {
#ifdef BITIMPL_EMULATOR
  struct Mine {
    T value, result;
    int from;
  } mine = {value, value, from};
  emulator::meet(
      [](void* const* lanes) {
        for (int i = 0; i < kWarp; ++i) {
          Mine* lane = static_cast<Mine*>(lanes[i]);
          lane->result = static_cast<Mine*>(lanes[lane->from & (kWarp - 1)])->value;
        }
      },
      &mine);
  return mine.result;
#else
  return __shfl_sync(0xffffffffu, value, from);
#endif
}

// Bit i: what lane i says.
__device__ __forceinline__ uint32_t ballot(bool yes) {
#ifdef BITIMPL_EMULATOR
  struct Mine {
    bool yes;
    uint32_t result;
  } mine = {yes, 0};
  emulator::meet(
      [](void* const* lanes) {
        uint32_t all = 0;
        for (int i = 0; i < kWarp; ++i) all |= static_cast<uint32_t>(static_cast<Mine*>(lanes[i])->yes) << i;
        for (int i = 0; i < kWarp; ++i) static_cast<Mine*>(lanes[i])->result = all;
      },
      &mine);
  return mine.result;
#else
  return __ballot_sync(0xffffffffu, yes);
#endif
}

// ---- matrix products ----------------------------------------------------------------------------------

// d [16, 8] += a [16, 32] of unsigned bytes times b [32, 8] of signed ones, modulo 2^32. With g = lane / 4 and
// t = lane % 4, bytes of a word at ascending columns of a, rows of b:
//   a[0] row g,     columns 4t ..     a[2] row g,     columns 16 + 4t ..    b[0] rows 4t ..,      column g
//   a[1] row g + 8, columns 4t ..     a[3] row g + 8, columns 16 + 4t ..    b[1] rows 16 + 4t .., column g
//   d[0], d[1] row g, columns 2t, 2t + 1     d[2], d[3] row g + 8, the same columns
__device__ __forceinline__ void mma_16x8x32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef BITIMPL_EMULATOR
  struct Mine {
    int32_t* d;
    const uint32_t* a;
    const uint32_t* b;
  } mine = {d, a, b};
  emulator::meet(
      [](void* const* lanes) {
        for (int i = 0; i < kWarp; ++i) {
          const Mine* to = static_cast<Mine*>(lanes[i]);
          for (int e = 0; e < 4; ++e) {
            const int row = i / 4 + e / 2 * 8;
            const int col = i % 4 * 2 + e % 2;
            for (int k = 0; k < 32; k += 4) {
              const uint32_t a4 = static_cast<Mine*>(lanes[row % 8 * 4 + k % 16 / 4])->a[row / 8 + k / 16 * 2];
              const uint32_t b4 = static_cast<Mine*>(lanes[col * 4 + k % 16 / 4])->b[k / 16];
              to->d[e] = dp4a(a4, b4, to->d[e]);
            }
          }
        }
      },
      &mine);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_PTX_CUH
