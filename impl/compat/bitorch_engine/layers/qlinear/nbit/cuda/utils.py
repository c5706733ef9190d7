"""``bitorch_engine.layers.qlinear.nbit.cuda.utils``."""

from impl.compat.bitorch_engine.nbit_tools import make_group_map, pack_fp_weight, unpack_qweight

__all__ = ["make_group_map", "pack_fp_weight", "unpack_qweight"]
