#include "table.h"

BITIMPL_DEFINE_TABLE(portable)
