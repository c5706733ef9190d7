"""Whether the CUDA kernels compute the reference's convolutions, and its signs: part of the self-check
(:mod:`impl.native.cuda.self_check`).

Activations are short binary fractions, so that integer products leave one right answer to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from impl.geometry import ConvGeometry
from impl.native.backends import activation_name, operator_of
from impl.native.cuda.convolution import PreparedCudaConv
from impl.native.cuda.signs import PreparedCudaSigns
from impl.native.library import NativeError
from impl.packing import PackedWeight
from impl.signs import Signs, Thresholds

Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One convolution of [2, channels, *size] images."""

    format: str
    bits: int
    channels: int
    rows: int
    size: Pair
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_value: float = 0.0
    components: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    bias: bool = False

    @property
    def geometry(self) -> ConvGeometry:
        """Where the kernel falls."""
        padding = tuple((pad, pad) for pad in self.padding)
        return ConvGeometry(self.kernel, self.stride, padding, self.dilation, self.groups, self.padding_value)

    def __str__(self) -> str:
        return (
            f"{self.format} convolution, {activation_name(self.bits)} activations, kernel {self.kernel}, "
            f"{self.channels} to {self.rows} channels in {self.groups} groups, {self.components} components"
        )


CASES = (
    Case("binary", 1, 64, 64, (9, 10), channels_last=True),
    Case("binary", 1, 37, 21, (7, 9), stride=(2, 2), components=2, bias=True),
    Case("binary", 1, 128, 72, (8, 8), dtype=torch.bfloat16, padding_value=1.0, dilation=(2, 1)),
    Case("binary", 1, 48, 24, (6, 5), groups=3, padding_value=-1.0, dtype=torch.float16, bias=True),
    Case("binary", 1, 160, 136, (12, 11), kernel=(1, 1), padding=(0, 0)),
    Case("binary", 8, 33, 40, (7, 6), dtype=torch.bfloat16, channels_last=True),
    Case("two_bit", 8, 64, 64, (10, 9), channels_last=True, bias=True),
    Case("base3", 8, 20, 41, (9, 7), stride=(2, 1), components=2, padding_value=1.0),
    Case("base3", 16, 24, 30, (5, 6), kernel=(5, 3), padding=(2, 0), dtype=torch.float16),
    Case("two_bit", 2, 40, 20, (6, 6), padding_value=-1.0),
    Case("two_bit", 1, 32, 32, (6, 7), groups=32, bias=True),
    Case("base3", 8, 16, 32, (8, 6), groups=4, dilation=(1, 2), padding=(1, 2)),
)


def _fractions(least: int, end: int, shape: tuple[int, ...], unit: int, generator: torch.Generator) -> Tensor:
    """Float32 multiples of 1 / ``unit``, whatever torch's defaults are."""
    return torch.randint(least, end, shape, generator=generator, device="cpu").to(torch.float32) / unit


def _filled(count: int, value: float) -> Tensor:
    return torch.full((count,), value, dtype=torch.float32, device="cpu")


def _drawn(format: str, components: int, rows: int, cols: int, generator: torch.Generator) -> PackedWeight:
    codes = torch.randint(
        -1, 2, (components, rows, cols), dtype=torch.int8, generator=generator, device="cpu"
    )
    if format == "binary":
        codes = (codes >= 0).to(torch.int8) * 2 - 1
    scales = _fractions(1, 257, (components, rows, 1), 4096, generator)
    return PackedWeight.from_codes(codes, scales, format, None)


def _there(weight: PackedWeight, device: torch.device) -> PackedWeight:
    return replace(weight, codes=weight.codes.to(device), scales=weight.scales.to(device))


class ConvSample:
    """A case with its tensors, and what the reference makes of it (:class:`self_check.Sample`)."""

    takes_floats = False

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        from impl import functional  # which itself comes after impl.native

        self.case = case
        generator = torch.Generator().manual_seed(seed)
        cols = case.geometry.taps * case.channels // case.groups
        weight = _drawn(case.format, case.components, case.rows, cols, generator)
        shape = (2, case.channels, *case.size)
        x = _fractions(-256, 257, shape, 64, generator).to(case.dtype)
        bias = _fractions(-64, 65, (case.rows,), 16, generator) if case.bias else None
        reference = getattr(functional, f"{operator_of(case.format, 'conv')}_python")
        self.expected: Tensor = reference(x, weight, case.geometry, bias, case.bits)
        self.x = x.to(device)
        if case.channels_last:
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.prepared = PreparedCudaConv(
            _there(weight, device), case.geometry, None if bias is None else bias.to(device), case.bits
        )

    def __str__(self) -> str:
        return str(self.case)

    def served(self) -> bool:
        """Whether the kernel that is selected takes the case."""
        try:
            self.prepared.workspace_bytes(self.x)
        except NativeError:
            return False
        return True

    def complaint(self) -> str:
        """What is wrong with the result of the kernel that is selected; "" where nothing is."""
        # The memory that the result is likely to get: what is not written shows.
        _ = self.x.new_full(self.expected.shape, float("nan"))
        del _
        y = self.prepared(self.x).cpu()
        count = int((y != self.expected).count_nonzero())
        return f"{count} of {y.numel()} values are wrong ({self.case})" if count else ""


def samples(device: torch.device) -> list[ConvSample]:
    """Every case on ``device``."""
    return [ConvSample(case, device, seed) for seed, case in enumerate(CASES)]


# ---- signs ------------------------------------------------------------------------------------


def _signs_complaint(device: torch.device) -> str:
    """Signs and floats into layers that give signs and floats, by the library's own choice of kernels."""
    for format, bits in (("binary", 1), ("two_bit", 1), ("base3", 8)):
        for geometry in (None, ConvGeometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, 0.0)):
            for takes_signs in (False, True) if bits == 1 else (False,):
                for gives_signs in (False, True) if takes_signs else (True,):
                    complaint = _complaint_of(device, format, bits, geometry, takes_signs, gives_signs)
                    if complaint:
                        return complaint
    return ""


def _complaint_of(
    device: torch.device,
    format: str,
    bits: int,
    geometry: ConvGeometry | None,
    takes_signs: bool,
    gives_signs: bool,
) -> str:
    from impl import functional

    image = geometry is not None
    rows, channels = 44, 72
    generator = torch.Generator().manual_seed(rows)
    weight = _drawn(format, 1, rows, channels * (9 if image else 1), generator)
    shape = (3, channels, 6, 7) if image else (5, channels)
    x = _fractions(-256, 257, shape, 64, generator)
    taken: Tensor | Signs = x
    if takes_signs:
        edges = [_filled(channels, edge) for edge in (0.0, torch.inf, -torch.inf, torch.inf)]
        taken = Thresholds(*edges).signs_of(x, image)
        x = taken.to_float(torch.float32, image)
    family = "conv" if image else "linear"
    reference = getattr(functional, f"{operator_of(format, family)}_python")
    y: Tensor = reference(x, weight, geometry, None, bits) if image else reference(x, weight, None, bits)
    thresholds = None
    if gives_signs:
        lower = _fractions(-64, 65, (rows,), 64, generator)
        thresholds = Thresholds(lower, lower + 1, _filled(rows, -1e30), _filled(rows, 1e30))
    prepared = PreparedCudaSigns(_there(weight, device), None, geometry, _moved(thresholds, device), bits)
    if isinstance(taken, Signs):
        taken = taken._replace(bits=taken.bits.to(device), scale=taken.scale.to(device))
    else:
        taken = taken.to(device)
    found = prepared(taken, torch.float32)
    if thresholds is None:
        assert isinstance(found, Tensor)
        wrong = not torch.equal(found.cpu(), y)
    else:
        assert isinstance(found, Signs)
        expected = thresholds.signs_of(y, image)
        wrong = not (
            torch.equal(found.bits.cpu(), expected.bits) and torch.equal(found.scale.cpu(), expected.scale)
        )
    roads = f"{'signs' if takes_signs else 'floats'} to {'signs' if gives_signs else 'floats'}"
    return f"{format} {family} from {roads} is wrong" if wrong else ""


def _moved(thresholds: Thresholds | None, device: torch.device) -> Thresholds | None:
    return None if thresholds is None else Thresholds(*(part.to(device) for part in thresholds))


CHECKS = {"signs": _signs_complaint}
