#include "table.h"

BITIMPL_DEFINE_TABLE(avx2)
