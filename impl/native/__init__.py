"""The native CPU kernels: where they are, which serve, and how torch tensors reach them."""

from impl.native.backends import (
    BACKENDS,
    backend,
    current_backend,
    kernel_name,
    last_kernel,
    operator_of,
    record_kernel,
    serves_cpu,
    uses_native,
)
from impl.native.calls import DTYPES, PreparedLinear, dequantize, linear
from impl.native.convolution import PreparedConv, conv, memory_format_of
from impl.native.huge_pages import prefer_huge_pages
from impl.native.library import (
    ABI_VERSION,
    NativeError,
    available,
    isa,
    library_path,
    multiply_accumulate,
    read_bytes,
    select_isa,
    supported_isas,
    threads,
    why_not,
)

__all__ = [
    "ABI_VERSION",
    "BACKENDS",
    "DTYPES",
    "NativeError",
    "PreparedConv",
    "PreparedLinear",
    "available",
    "backend",
    "conv",
    "current_backend",
    "dequantize",
    "isa",
    "kernel_name",
    "last_kernel",
    "library_path",
    "linear",
    "memory_format_of",
    "multiply_accumulate",
    "operator_of",
    "prefer_huge_pages",
    "read_bytes",
    "record_kernel",
    "select_isa",
    "serves_cpu",
    "supported_isas",
    "threads",
    "uses_native",
    "why_not",
]
