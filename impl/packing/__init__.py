"""Weight codes as bytes: the packed layouts of ``impl.h``, their header, and foreign layouts."""

from impl.packing.container import Header, PackedWeight, pack_header, read_header
from impl.packing.damage import already_checked, check_packed, check_scales
from impl.packing.interchange import (
    compression_ratio,
    estimate_memory_savings,
    hf_weight_scale,
    pack_hf_two_bit,
    pack_ternary_base3,
    unpack_hf_two_bit,
    unpack_ternary_base3,
)
from impl.packing.layout import (
    FORMAT_BITS,
    FORMATS,
    LAYOUT_V1,
    codes_bytes,
    pack,
    pack_sign_rows,
    unpack,
    unpack_sign_rows,
)

__all__ = [
    "FORMATS",
    "FORMAT_BITS",
    "LAYOUT_V1",
    "Header",
    "PackedWeight",
    "already_checked",
    "check_packed",
    "check_scales",
    "codes_bytes",
    "compression_ratio",
    "estimate_memory_savings",
    "hf_weight_scale",
    "pack",
    "pack_header",
    "pack_hf_two_bit",
    "pack_sign_rows",
    "pack_ternary_base3",
    "read_header",
    "unpack",
    "unpack_hf_two_bit",
    "unpack_sign_rows",
    "unpack_ternary_base3",
]
