"""The native kernels: where they are, which serve, and how torch tensors reach them."""

from impl.native import cuda
from impl.native.backends import (
    BACKENDS,
    activation_name,
    backend,
    current_backend,
    kernel_name,
    last_kernel,
    operator_of,
    record_kernel,
    serves_cpu,
)
from impl.native.calls import DTYPES, DescribedLinear, PreparedLinear
from impl.native.convolution import PreparedConv, conv, memory_format_of
from impl.native.dispatch import (
    dequantize,
    linear,
    linear_operation,
    prepare_linear,
    serves_cuda,
    training_kernels,
    uses_native,
)
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
from impl.native.signs import PreparedSigns

__all__ = [
    "ABI_VERSION",
    "BACKENDS",
    "DTYPES",
    "DescribedLinear",
    "NativeError",
    "PreparedConv",
    "PreparedLinear",
    "PreparedSigns",
    "activation_name",
    "available",
    "backend",
    "conv",
    "cuda",
    "current_backend",
    "dequantize",
    "isa",
    "kernel_name",
    "last_kernel",
    "library_path",
    "linear",
    "linear_operation",
    "memory_format_of",
    "multiply_accumulate",
    "operator_of",
    "prefer_huge_pages",
    "prepare_linear",
    "read_bytes",
    "record_kernel",
    "select_isa",
    "serves_cpu",
    "serves_cuda",
    "supported_isas",
    "threads",
    "training_kernels",
    "uses_native",
    "why_not",
]
