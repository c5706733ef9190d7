"""The names, signatures and rules of other libraries, for code that changes one import.

:mod:`impl.compat.bitorch_engine`  GreenBitAI/bitorch-engine
:mod:`impl.compat.bitlinear`       krisaujla/BitLinear
:mod:`impl.compat.zeta`            kyegomez/zeta

They keep what those libraries document; their defects are mended, each module says which.
"""

from impl.compat import bitlinear, bitorch_engine, zeta

__all__ = ["bitlinear", "bitorch_engine", "zeta"]
