// What only sm_90a has: barriers that count copied bytes, bulk copies, products of a whole warpgroup. As in
// ptx.cuh each comes with what it does on the host, for the emulator: there a copy lands, and a product
// happens, either at once or as late as it may.
#ifndef BITIMPL_CUDA_HOPPER_CUH
#define BITIMPL_CUDA_HOPPER_CUH

#include "ptx.cuh"
#include "wgmma_layout.h"

#ifdef BITIMPL_EMULATOR
#include <vector>
#endif

namespace bitimpl {
namespace cuda {

#ifdef BITIMPL_EMULATOR
namespace emulated {

// Eight bytes in shared memory, as an mbarrier has.
struct Barrier {
  uint16_t count;
  uint16_t pending;
  int16_t parity;  // of the phase that is not complete yet
  int16_t bytes;   // awaited

  void settle() {
    if (pending != 0 || bytes != 0) return;
    parity ^= 1;
    pending = count;
  }
};

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
  Barrier* barrier;
};

// A product of one warp's 16 rows.
struct Product {
  int columns;
  int group;
  bool add;
  uint64_t b;
  int32_t* d[kWarp];
  const uint32_t* a[kWarp];
};

struct Warp {
  std::vector<Product> products;
  int group = 0;  // that products join
};

// What the running block has begun.
struct InFlight {
  std::vector<Copy> copies;
  std::vector<Warp> warps{32};
};
inline InFlight& in_flight() {
  static InFlight one;
  return one;
}

inline void land(const Copy& copy) {
  memcpy(copy.to, copy.from, copy.bytes);
  copy.barrier->bytes = static_cast<int16_t>(copy.barrier->bytes - static_cast<int>(copy.bytes));
  copy.barrier->settle();
}

inline void land_all(const Barrier* barrier) {
  std::vector<Copy>& copies = in_flight().copies;
  for (size_t i = 0; i < copies.size();) {
    if (copies[i].barrier != barrier) {
      ++i;
      continue;
    }
    land(copies[i]);
    copies.erase(copies.begin() + static_cast<ptrdiff_t>(i));
  }
}

// The four bytes from `depth` on of row `row` of B, as a descriptor of K-major rows has them.
inline uint32_t word_of_b(uint64_t descriptor, int row, int depth) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t eight_rows = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t logical = start + row / 8 * eight_rows + row % 8 * 64 + depth;
  const uint32_t address = logical ^ ((logical >> 7 & 3) << 4);
  uint32_t word;
  memcpy(&word, static_cast<const char*>(emulator::shared()) + address, sizeof word);
  return word;
}

inline void multiply(const Product& p) {
  for (int row = 0; row < 16; ++row) {
    uint32_t a[8];
    uint32_t any = 0;
    for (int word = 0; word < 8; ++word) {
      a[word] = p.a[row % 8 * 4 + word % 4][row / 8 + word / 4 * 2];
      any |= a[word];
    }
    for (int column = 0; column < p.columns; ++column) {
      int32_t* d = p.d[row % 8 * 4 + column % 8 / 2] + column / 8 * 4 + row / 8 * 2 + column % 2;
      if (!p.add) *d = 0;
      for (int word = 0; any != 0 && word < 8; ++word) {
        *d = dp4a(a[word], word_of_b(p.b, column, 4 * word), *d);
      }
    }
  }
}

inline void finish(Warp& warp, int last_group) {
  size_t done = 0;
  for (; done < warp.products.size() && warp.products[done].group <= last_group; ++done) {
    multiply(warp.products[done]);
  }
  warp.products.erase(warp.products.begin(), warp.products.begin() + static_cast<ptrdiff_t>(done));
}

inline Warp& this_warp() { return in_flight().warps[threadIdx.x / kWarp]; }

}  // namespace emulated
#endif

// Of a pointer into shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* at) {
#ifdef BITIMPL_EMULATOR
  return static_cast<uint32_t>(static_cast<const char*>(at) - static_cast<const char*>(emulator::shared()));
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
#endif
}

// ---- barriers --------------------------------------------------------------------------------------------

// By one thread; others use it after show_barriers() of that thread and __syncthreads().
__device__ __forceinline__ void init_barrier(uint64_t* barrier, uint32_t count) {
#ifdef BITIMPL_EMULATOR
  const uint16_t threads = static_cast<uint16_t>(count);
  *reinterpret_cast<emulated::Barrier*>(barrier) = {threads, threads, 0, 0};
  emulated::in_flight().copies.clear();  // of a block that came to grief
  for (emulated::Warp& warp : emulated::in_flight().warps) warp.products.clear();
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
#endif
}

__device__ __forceinline__ void show_barriers() {
#ifndef BITIMPL_EMULATOR
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
#ifdef BITIMPL_EMULATOR
  emulated::Barrier* b = reinterpret_cast<emulated::Barrier*>(barrier);
  --b->pending;
  b->settle();
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// Arrives and says how many bytes the phase is to wait for.
__device__ __forceinline__ void arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
#ifdef BITIMPL_EMULATOR
  reinterpret_cast<emulated::Barrier*>(barrier)->bytes += static_cast<int16_t>(bytes);
  arrive(barrier);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}

// Waits, with the whole warp, until the phase of that parity is complete; the phase before the first counts
// as complete, of parity 1.
__device__ __forceinline__ void wait_for_phase(uint64_t* barrier, uint32_t parity) {
#ifdef BITIMPL_EMULATOR
  struct Mine {
    emulated::Barrier* barrier;
    uint32_t parity;
    bool complete;
  } mine = {reinterpret_cast<emulated::Barrier*>(barrier), parity, false};
  while (!mine.complete) {
    emulator::meet(
        [](void* const* lanes) {
          Mine* first = static_cast<Mine*>(lanes[0]);
          emulated::land_all(first->barrier);
          const bool complete = first->barrier->parity != static_cast<int16_t>(first->parity);
          for (int i = 0; i < kWarp; ++i) static_cast<Mine*>(lanes[i])->complete = complete;
        },
        &mine);
    if (!mine.complete) emulator::give_way();
  }
#else
  asm volatile(
      "{\n.reg .pred complete;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@!complete bra again;\n}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// Copies a multiple of 16 aligned bytes from global to shared memory and takes them off what the barrier's
// phase waits for. By one thread.
__device__ __forceinline__ void copy_bulk(void* to_shared, const void* from, uint32_t bytes,
                                          uint64_t* barrier) {
#ifdef BITIMPL_EMULATOR
  const emulated::Copy copy = {to_shared, from, bytes, reinterpret_cast<emulated::Barrier*>(barrier)};
  if (emulator::chance()) {
    emulated::in_flight().copies.push_back(copy);
  } else {
    emulated::land(copy);
  }
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :
               : "r"(shared_address(to_shared)), "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#endif
}

// ---- registers -------------------------------------------------------------------------------------------

// How many each thread of this warpgroup has from here on: given back, or waited for.
template <int COUNT>
__device__ __forceinline__ void keep_registers() {
#ifndef BITIMPL_EMULATOR
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
#ifndef BITIMPL_EMULATOR
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// ---- products of a warpgroup -----------------------------------------------------------------------------

// Nothing that the compiler may move past this point: what is computed before is there.
__device__ __forceinline__ void pin([[maybe_unused]] uint32_t& value) {
#ifndef BITIMPL_EMULATOR
  asm volatile("" : "+r"(value)::"memory");
#endif
}
__device__ __forceinline__ void pin([[maybe_unused]] int32_t& value) {
#ifndef BITIMPL_EMULATOR
  asm volatile("" : "+r"(value)::"memory");
#endif
}

// The value in a register of its own.
__device__ __forceinline__ uint32_t copy_of(uint32_t value) {
#ifdef BITIMPL_EMULATOR
  return value;
#else
  uint32_t copy;
  asm volatile("prmt.b32 %0, %1, %1, 0x3210;" : "=r"(copy) : "r"(value));
  return copy;
#endif
}

// Between writes to registers (pinned) and a product that reads them.
__device__ __forceinline__ void fence_products() {
#ifndef BITIMPL_EMULATOR
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Ends a group of products.
__device__ __forceinline__ void commit_products() {
#ifdef BITIMPL_EMULATOR
  emulator::meet([](void* const*) { ++emulated::this_warp().group; }, nullptr);
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits for this warpgroup's groups of products, all but the last BUT: their registers are free again.
template <int BUT>
__device__ __forceinline__ void wait_for_products() {
#ifdef BITIMPL_EMULATOR
  emulator::meet(
      [](void* const*) {
        emulated::Warp& warp = emulated::this_warp();
        emulated::finish(warp, warp.group - 1 - BUT);
      },
      nullptr);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(BUT) : "memory");
#endif
}

// d [64, COLUMNS] = a [64, 32] of unsigned bytes times the signed ones of a descriptor, modulo 2^32, plus d
// where `add`. Fragments: wgmma_layout.h. d and a may not be touched before the group has been waited for.
template <int COLUMNS>
__device__ __forceinline__ void multiply(int32_t (&d)[COLUMNS / 2], const uint32_t (&a)[4], uint64_t b,
                                         bool add) {
  static_assert(COLUMNS == 64 || COLUMNS == 32, "one instruction each");
#ifdef BITIMPL_EMULATOR
  struct Mine {
    int32_t* d;
    const uint32_t* a;
    uint64_t b;
    bool add;
  } mine = {d, a, b, add};
  emulator::meet(
      [](void* const* lanes) {
        emulated::Warp& warp = emulated::this_warp();
        const Mine* first = static_cast<Mine*>(lanes[0]);
        emulated::Product product = {COLUMNS, warp.group, first->add, first->b, {}, {}};
        for (int i = 0; i < kWarp; ++i) {
          product.d[i] = static_cast<Mine*>(lanes[i])->d;
          product.a[i] = static_cast<Mine*>(lanes[i])->a;
        }
        warp.products.push_back(product);
        if (!emulator::chance()) emulated::finish(warp, warp.group);
      },
      &mine);
#else
  if constexpr (COLUMNS == 64) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p;\n}\n"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
          "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
          "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]),
          "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
          "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
          "+r"(d[30]), "+r"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(add)));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
        "{%16, %17, %18, %19}, %20, p;\n}\n"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),
          "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(add)));
  }
#endif
}

}  // namespace cuda
}  // namespace bitimpl

#endif  // BITIMPL_CUDA_HOPPER_CUH
