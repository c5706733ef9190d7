// Which instruction set serves the calls.
#ifndef BITIMPL_CPU_ISA_H
#define BITIMPL_CPU_ISA_H

#include "kernels.h"

namespace bitimpl {

// The table in use, or null after fail(BITIMPL_UNSUPPORTED, ...) where BITIMPL_ISA names an
// instruction set that this machine or build lacks.
const KernelTable* active_kernels();

}  // namespace bitimpl

#endif  // BITIMPL_CPU_ISA_H
