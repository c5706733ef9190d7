#include "isa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "../common/error.h"

#if BITIMPL_HAS_NEON && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace bitimpl {
namespace {

// Best first. A set counts as usable where the processor has every extension its files are
// compiled with (CMakeLists.txt) and the operating system saves its registers, which
// __builtin_cpu_supports includes.
constexpr int kMaxIsas = 3;

#if BITIMPL_HAS_NEON
#if defined(__linux__)
bool has_dot_products() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
bool has_matrix_products() { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#else
// No such question elsewhere: what the compiler may use in every file is there.
bool has_dot_products() {
#if defined(__ARM_FEATURE_DOTPROD)
  return true;
#else
  return false;
#endif
}
bool has_matrix_products() {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return true;
#else
  return false;
#endif
}
#endif
#endif

struct IsaList {
  const KernelTable* tables[kMaxIsas];
  int count = 0;
  char names[64] = "";

  IsaList() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    [[maybe_unused]] const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi") &&
                      __builtin_cpu_supports("bmi2");
#endif
#if BITIMPL_HAS_AVX512
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vpopcntdq")) {
      add(kernels_avx512());
    }
#endif
#if BITIMPL_HAS_AVX2
    if (avx2) add(kernels_avx2());
#endif
#if BITIMPL_HAS_NEON
    if (has_dot_products()) {
#if BITIMPL_HAS_NEON_I8MM
      if (has_matrix_products()) add(kernels_neon_i8mm());
#endif
      add(kernels_neon());
    }
#endif
    add(kernels_portable());
  }

  void add(const KernelTable& table) {
    const size_t used = strlen(names);
    snprintf(names + used, sizeof names - used, "%s%s", count == 0 ? "" : ",", table.isa);
    tables[count++] = &table;
  }

  const KernelTable* find(const char* name) const {
    for (int i = 0; i < count; ++i) {
      if (strcmp(tables[i]->isa, name) == 0) return tables[i];
    }
    return nullptr;
  }
};

const IsaList& usable() {
  static const IsaList list;
  return list;
}

// The choice: the environment's at load, then that of bitimpl_select_isa. Null means that
// BITIMPL_ISA named something unusable and nothing has replaced it since.
struct Choice {
  std::atomic<const KernelTable*> table;
  char requested[32] = "";  // as BITIMPL_ISA gave it, cut to fit a message

  Choice() {
    const char* name = getenv("BITIMPL_ISA");
    if (name == nullptr || *name == '\0') {
      table = usable().tables[0];
    } else {
      snprintf(requested, sizeof requested, "%s", name);
      table = usable().find(name);
    }
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

// Runs at load, so that a later change of the environment does not change the choice.
[[maybe_unused]] const Choice& chosen_at_load = choice();

}  // namespace

const KernelTable* active_kernels() {
  const KernelTable* table = choice().table.load(std::memory_order_relaxed);
  if (table == nullptr) {
    fail(BITIMPL_UNSUPPORTED,
         "BITIMPL_ISA=%s is not usable here (usable: %s): unset it or choose one of these",
         choice().requested, usable().names);
  }
  return table;
}

}  // namespace bitimpl

extern "C" {

const char* bitimpl_supported_isas(void) { return bitimpl::usable().names; }

const char* bitimpl_isa(void) {
  bitimpl::clear_error();
  const bitimpl::KernelTable* table = bitimpl::active_kernels();
  return table == nullptr ? "" : table->isa;
}

int bitimpl_select_isa(const char* name) {
  using namespace bitimpl;
  clear_error();
  const bool best = name == nullptr || *name == '\0';
  const KernelTable* table = best ? usable().tables[0] : usable().find(name);
  if (table == nullptr) {
    return fail(BITIMPL_UNSUPPORTED,
                "instruction set \"%.32s\" is not usable here (usable: %s): choose one of these",
                name, usable().names);
  }
  choice().table.store(table, std::memory_order_relaxed);
  return BITIMPL_OK;
}

}  // extern "C"
