"""Whether the kernels compute on a device what the reference computes.

Every kernel runs a few small products and is compared with the torch reference on the CPU. Activations are
short binary fractions, so that sums of them are exact in any order: with one scale a component, integer
activations then leave one right answer to the bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from impl.native.backends import activation_name, operator_of
from impl.native.cuda import calls, image_check, training_check
from impl.native.cuda.library import CudaLibrary
from impl.native.library import NativeError
from impl.packing import FORMATS, PackedWeight
from impl.quantizers import Quantized

#: Changes with what is checked: results kept on disk hold for one version.
VERSION = 5

#: Kernels that serve every shape and so every case of their activations.
SERVE_ALL = ("any", "float")

PACKING = ("pack", "unpack", "dequantize")


@dataclass(frozen=True)
class Case:
    """One product: y [tokens, rows] of x [tokens, cols]."""

    tokens: int
    rows: int
    cols: int
    format: str
    bits: int | None = 8
    components: int = 1
    group_size: int | None = None
    dtype: torch.dtype = torch.float32
    bias: torch.dtype | None = None
    scale_dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return (
            f"{self.format}, {activation_name(self.bits)} activations, {self.tokens} x {self.rows} x "
            f"{self.cols}, {self.components} components, group_size {self.group_size}"
        )


_BF16, _F16 = torch.bfloat16, torch.float16
_SMALL = (
    Case(1, 45, 200, "two_bit"),
    Case(1, 45, 200, "base3", bias=torch.float32, dtype=_BF16),
    Case(2, 21, 67, "base3", bits=16, components=2, bias=_F16),
    Case(3, 20, 64, "two_bit", bits=1, scale_dtype=_F16),
    Case(5, 33, 130, "base3", bits=2, dtype=_F16, bias=_BF16),
    Case(8, 83, 192, "two_bit", components=2, group_size=64),
    Case(17, 70, 320, "base3", components=3),
    Case(33, 64, 129, "two_bit", bits=16, bias=torch.float32),
    Case(40, 81, 200, "base3", group_size=24),
    Case(70, 130, 256, "two_bit", dtype=_BF16, bias=_BF16),
    Case(67, 101, 256, "base3", bits=16, components=2, bias=torch.float32),
    Case(66, 44, 72, "base3", bits=1, group_size=32),
)
_FLOAT = (
    Case(1, 45, 200, "two_bit", None),
    Case(4, 83, 130, "base3", None, components=2, group_size=64, bias=_F16),
    Case(19, 33, 67, "two_bit", None),
)
#: Shapes that give a whole device work: sums cut over blocks, several tiles each way.
_LARGE = (
    *(Case(tokens, 1040, 4160, format) for tokens in (1, 6, 48, 200) for format in ("two_bit", "base3")),
    Case(4, 1040, 16448, "two_bit"),  # more shared memory than a block has without asking
    Case(1, 1040, 4160, "base3", None),
    Case(8, 1040, 4160, "two_bit", None),
)
_BINARY = (
    Case(1, 45, 200, "binary", bits=1),
    Case(3, 20, 129, "binary", bits=1, components=2, dtype=_BF16, bias=_F16),
    Case(5, 33, 256, "binary", bits=1, group_size=64),
    Case(21, 70, 640, "binary", bits=1, bias=torch.float32, scale_dtype=_F16),
    Case(67, 101, 1024, "binary", bits=1, dtype=_F16),
    Case(2, 45, 200, "binary"),
    Case(40, 81, 200, "binary", bits=16, bias=_BF16),
    Case(4, 33, 130, "binary", bits=2, group_size=24),
    Case(3, 45, 130, "binary", None),
    *(Case(tokens, 1040, 4160, "binary", bits=1) for tokens in (1, 6, 48, 300)),
    Case(300, 520, 4096, "two_bit", bits=2),
)
CASES = (*_SMALL, *_FLOAT, *_LARGE, *_BINARY)


class Sample(Protocol):
    """A call with a right answer."""

    takes_floats: bool
    """Whether its activations are floats as they are."""

    def served(self) -> bool:
        """Whether the kernel that is selected takes the case."""

    def complaint(self) -> str:
        """What is wrong with the result of the kernel that is selected; "" where nothing is."""


class _Sample:
    """A case with its tensors on the CPU and the device, and what the reference makes of it."""

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        self.case, self.takes_floats = case, case.bits is None
        generator = torch.Generator().manual_seed(seed)
        draw = functools.partial(torch.randint, generator=generator, device="cpu")
        codes = draw(-1, 2, (case.components, case.rows, case.cols), dtype=torch.int8)
        if case.format == "binary":
            codes = (codes >= 0).to(torch.int8) * 2 - 1
        groups = 1 if case.group_size is None else -(-case.cols // case.group_size)
        scales = (draw(1, 257, (case.components, case.rows, groups)) / 4096).to(case.scale_dtype)
        weight = PackedWeight.from_codes(codes, scales, case.format, case.group_size)
        x = (draw(-256, 257, (case.tokens, case.cols)) / 64).to(case.dtype)
        bias = None if case.bias is None else (draw(-64, 65, (case.rows,)) / 16).to(case.bias)
        self.expected, self.margin = _reference(case, codes, weight, x, bias)
        self.x = x.to(device)
        self.prepared = calls.PreparedCudaLinear(
            replace(weight, codes=weight.codes.to(device), scales=weight.scales.to(device)),
            None if bias is None else bias.to(device),
            case.bits,
        )

    def __str__(self) -> str:
        return str(self.case)

    def served(self) -> bool:
        """As :class:`Sample`."""
        try:
            self.prepared.workspace_bytes(self.case.tokens)
        except NativeError:
            return False
        return True

    def complaint(self) -> str:
        """As :class:`Sample`."""
        # The memory that the result is likely to get: what is not written shows.
        _ = self.x.new_full((self.case.tokens, self.case.rows), float("nan"))
        del _
        y = self.prepared(self.x).cpu()
        if self.margin is None:
            wrong = y != self.expected
        else:
            wrong = ~((y.double() - self.expected.double()).abs() <= self.margin)
        count = int(wrong.count_nonzero())
        if count == 0:
            return ""
        at = tuple(wrong.nonzero()[0].tolist())
        return (
            f"{count} of {y.numel()} values are wrong ({self.case}), the first {y[at].item():g} in place of "
            f"{self.expected[at].item():g} at {list(at)}"
        )


def _reference(
    case: Case, codes: Tensor, weight: PackedWeight, x: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """y, and how far a result may be from it: None where not at all."""
    from impl import functional  # which itself comes after impl.native

    reference = getattr(functional, f"{operator_of(case.format)}_python")
    y: Tensor = reference(x, weight, bias, case.bits)
    if case.bits is not None and case.group_size is None:
        return y, None
    decoded = Quantized(codes, weight.scales, case.group_size).dequantize().double().abs()
    size = x.double().abs() @ decoded.T + (0 if bias is None else bias.double().abs())
    return y, 1e-5 * (size + float(decoded.max()))


def check(library: CudaLibrary, index: int) -> dict[str, str]:
    """What is wrong with each kernel of ``library`` on device ``index``, by the kernel's name or one of
    :data:`PACKING`, :data:`impl.native.cuda.image_check.CHECKS` and
    :data:`impl.native.cuda.training_check.CHECKS`; empty where nothing is. Takes
    seconds at most.

    Raises NativeError where a kernel has left the device unusable.
    """
    device = library.device(index)
    wrong: dict[str, str] = {}
    with _undisturbed(), _selecting(library):
        samples: list[Sample] = [_Sample(case, device, seed) for seed, case in enumerate(CASES)]
        samples += image_check.samples(device)
        for name in library.kernels:
            if name in library.unproven:
                continue
            library.select(name)
            complaint = _guarded(functools.partial(_kernel_complaint, name, samples), name, library, index)
            if complaint:
                wrong[name] = complaint
        library.select("")
        for name, complain in (_PACKING_CHECKS | image_check.CHECKS | training_check.CHECKS).items():
            complaint = _guarded(functools.partial(complain, device), name, library, index)
            if complaint:
                wrong[name] = complaint
    return wrong


def _kernel_complaint(name: str, samples: list[Sample]) -> str:
    for sample in samples:
        if sample.served():
            complaint = sample.complaint()
        else:
            takes_it = name in SERVE_ALL and (name == "float") == sample.takes_floats
            complaint = f"it refuses what it should take ({sample})" if takes_it else ""
        if complaint:
            return complaint
    return ""


# ---- packing ----------------------------------------------------------------------------------


def _packed_cases() -> Iterator[tuple[Tensor, PackedWeight]]:
    generator = torch.Generator().manual_seed(0)
    for format in FORMATS:
        for components, rows, cols, group_size in ((1, 45, 200, None), (2, 83, 131, 24)):
            codes = torch.randint(
                -1, 2, (components, rows, cols), dtype=torch.int8, generator=generator, device="cpu"
            )
            if format == "binary":
                codes = (codes >= 0).to(torch.int8) * 2 - 1
            groups = 1 if group_size is None else -(-cols // group_size)
            scales = torch.rand(
                components, rows, groups, generator=generator, device="cpu", dtype=torch.float32
            )
            yield codes, PackedWeight.from_codes(codes, scales, format, group_size)


def _differs(found: Tensor, expected: Tensor, weight: PackedWeight) -> str:
    count = int((found.cpu() != expected).count_nonzero())
    shape = f"{weight.components} x {weight.rows} x {weight.cols}"
    what = f"{weight.format}, {shape}, group_size {weight.group_size}"
    return f"{count} of {expected.numel()} values are wrong ({what})" if count else ""


def _pack_complaint(device: torch.device) -> str:
    for codes, weight in _packed_cases():
        found = calls.pack(codes.to(device), weight.format, weight.group_size)
        complaint = _differs(found, weight.codes, weight)
        if complaint:
            return complaint
    return ""


def _unpack_complaint(device: torch.device) -> str:
    for codes, weight in _packed_cases():
        found = calls.unpack(
            weight.codes.to(device),
            weight.format,
            weight.components,
            weight.rows,
            weight.cols,
            weight.group_size,
        )
        complaint = _differs(found, codes, weight)
        if complaint:
            return complaint
    return ""


def _dequantize_complaint(device: torch.device) -> str:
    for codes, weight in _packed_cases():
        expected = Quantized(codes, weight.scales, weight.group_size).dequantize()
        there = replace(weight, codes=weight.codes.to(device), scales=weight.scales.to(device))
        prepared = calls.PreparedCudaLinear(there, None, None)
        for begin, end in ((0, weight.rows), (7, 29)):
            for dtype in (torch.float32, torch.bfloat16):
                found = torch.full((end - begin, weight.cols), float("nan"), dtype=dtype, device=device)
                prepared.dequantize_into(found, begin, end)
                complaint = _differs(found, expected[begin:end].to(dtype), weight)
                if complaint:
                    return complaint
    return ""


_PACKING_CHECKS = dict(zip(PACKING, (_pack_complaint, _unpack_complaint, _dequantize_complaint), strict=True))


# ---- around it --------------------------------------------------------------------------------


def _guarded(complain: Callable[[], str], name: str, library: CudaLibrary, index: int) -> str:
    """What ``complain`` says, or the library's own error; NativeError where the device is lost."""
    try:
        return complain()
    except NativeError as error:
        return str(error)
    except torch.OutOfMemoryError:
        raise  # of the device's memory, not of the kernel: the next call checks again
    except RuntimeError as error:
        raise NativeError(
            f"cuda:{index} ({library.name_of(index)}) failed in the self-check of the CUDA kernel {name!r}: "
            f"{error}. This process can use the device no more: start it again with BITIMPL_BACKEND=torch"
        ) from error


@contextlib.contextmanager
def _selecting(library: CudaLibrary) -> Iterator[None]:
    """The thread's choice and preference, back afterwards; without a preference until then: what a check
    finds must not depend on whose first call it comes with."""
    name, preferred = library.selection.name, library.selection.preferred
    library.prefer("")
    try:
        yield
    finally:
        library.select(name)
        library.prefer(preferred)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """The check comes with somebody's first call, whatever modes that is made in."""
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield
