#include "table.h"

BITIMPL_DEFINE_TABLE(neon_i8mm)
