"""Every operator under ``torch.ops.bitimpl`` passes ``torch.library.opcheck``.

The operators are asked of torch's registry, so that one without samples here fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import impl.ops  # noqa: F401 - registers the operators
from impl.geometry import ConvGeometry
from impl.packing import FORMATS, PackedWeight

pytestmark = pytest.mark.usefixtures("one_thread")

Arguments = tuple[Any, ...]

GEOMETRIES = [
    ConvGeometry((3,), (1,), ((1, 1),), (1,), 2, -1.0),
    ConvGeometry((3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 1, 0.0),
    ConvGeometry((2, 1, 2), (1, 1, 2), ((0, 0), (1, 1), (0, 1)), (1, 1, 1), 2, 1.0),
]
CHANNELS, ROWS = 6, 8


def weight_of(
    format: str, rows: int, cols: int, components: int = 1, group_size: int | None = None
) -> PackedWeight:
    generator = torch.Generator().manual_seed(rows * cols)
    shape = (components, rows, cols)
    codes = torch.randint(-1, 2, shape, dtype=torch.int8, generator=generator)
    if format == "binary":
        codes = torch.where(codes >= 0, 1, -1).to(torch.int8)
    groups = 1 if group_size is None else -(-cols // group_size)
    scales = torch.rand(components, rows, groups, generator=generator) + 0.1
    return PackedWeight.from_codes(codes, scales, format, group_size)


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return values.to(dtype).requires_grad_()


def formats_of(operator: str) -> tuple[tuple[str, int], ...]:
    return (("binary", 1),) if operator.startswith("binary") else (("base3", 2), ("two_bit", 1))


def linear(operator: str) -> Iterator[Arguments]:
    for format, components in formats_of(operator):
        for group_size, all_bits in ((None, (0, 1) if format == "binary" else (0, 16)), (16, (8,))):
            weight = weight_of(format, 23, 50, components, group_size)
            shape = (weight.rows, weight.cols, components, group_size or 0, FORMATS[format])
            for bits in all_bits:
                yield (leaf(3, 50), weight.codes, weight.scales, leaf(23), *shape, bits)
        yield (leaf(2, 0, 50).detach(), weight.codes, weight.scales, None, *shape, 8)
        yield (leaf(2, 3, 50, dtype=torch.bfloat16), weight.codes, weight.scales, None, *shape, 0)


def linear_input_grad(operator: str) -> Iterator[Arguments]:
    for format in FORMATS:
        weight = weight_of(format, 23, 50, 1, 16)
        for grad in (leaf(4, 23), leaf(2, 0, 23), leaf(2, 3, 23, dtype=torch.bfloat16)):
            yield (grad, weight.codes, weight.scales, 23, 50, 1, 16, FORMATS[format])


def places(geometry: ConvGeometry) -> Arguments:
    padding = [side for pair in geometry.padding for side in pair]
    lists = ([*geometry.kernel], [*geometry.stride], padding, [*geometry.dilation])
    return (*lists, geometry.groups)


def image(geometry: ConvGeometry, dtype: torch.dtype = torch.float32) -> Tensor:
    return leaf(2, CHANNELS, *(5, 6, 4)[: geometry.dims], dtype=dtype)


def conv_weight(format: str, components: int, geometry: ConvGeometry) -> tuple[PackedWeight, Arguments]:
    weight = weight_of(format, ROWS, geometry.taps * CHANNELS // geometry.groups, components)
    return weight, (weight.rows, weight.cols, components, FORMATS[format])


def conv(operator: str) -> Iterator[Arguments]:
    for format, components in formats_of(operator):
        for geometry, bits in zip(GEOMETRIES, (1 if format == "binary" else 16, 8, 0), strict=True):
            weight, shape = conv_weight(format, components, geometry)
            where = (bits, *places(geometry), geometry.padding_value)
            yield (image(geometry), weight.codes, weight.scales, leaf(ROWS), *shape, *where)
            x = image(geometry, torch.bfloat16).detach()
            if geometry.dims == 2:
                x = x.to(memory_format=torch.channels_last)
                yield (x, weight.codes, weight.scales, None, *shape, *where)
                yield (x[:0], weight.codes, weight.scales, None, *shape, *where)


def conv_input_grad(operator: str) -> Iterator[Arguments]:
    for geometry in GEOMETRIES:
        x = image(geometry)
        for format in FORMATS:
            weight, shape = conv_weight(format, 1, geometry)
            grad = leaf(2, ROWS, *geometry.output_size(tuple(x.shape[2:])))
            yield (grad, weight.codes, weight.scales, *shape, *places(geometry), list(x.shape))


def latent(operator: str) -> Iterator[Arguments]:
    weight = leaf(23, 50).detach()
    yield (weight, "absmean", True, 0, FORMATS["base3"], False)
    yield (weight, "twn", False, 16, FORMATS["two_bit"], True)
    yield (weight.bfloat16(), "absmax", False, 0, FORMATS["base3"], True)
    yield (weight, "sign", False, 16, FORMATS["binary"], True)
    yield (weight, "sign", True, 0, FORMATS["binary"], False)


def int8_weight(format: str, group_size: int | None) -> tuple[PackedWeight, Tensor]:
    mask = torch.randint(0, 256, (23, 7), generator=torch.Generator().manual_seed(0))
    return weight_of(format, 23, 50, 1, group_size), mask.to(torch.uint8)


def int8_training_linear(operator: str) -> Iterator[Arguments]:
    kinds = (("base3", None, 8), ("two_bit", 16, 8), ("binary", 16, 8), ("binary", None, 1))
    for format, group_size, bits in kinds:
        weight, mask = int8_weight(format, group_size)
        held = (weight.codes, weight.scales, mask, group_size or 0, FORMATS[format], bits)
        yield (leaf(3, 50), leaf(23, 50), leaf(23), *held)
        yield (leaf(2, 0, 50).detach(), leaf(23, 50), None, *held)
        yield (leaf(2, 3, 50, dtype=torch.bfloat16), leaf(23, 50), None, *held[:2], None, *held[3:])


def int8_linear_input_grad(operator: str) -> Iterator[Arguments]:
    for format, group_size in (("base3", None), ("two_bit", 16), ("binary", 24)):
        weight, _ = int8_weight(format, group_size)
        for grad in (leaf(4, 23), leaf(2, 0, 23), leaf(2, 3, 23, dtype=torch.bfloat16)):
            yield (grad.detach(), weight.codes, weight.scales, 23, 50, group_size or 0, FORMATS[format])


def ste_mask(operator: str) -> Iterator[Arguments]:
    _, mask = int8_weight("base3", None)
    yield (leaf(23, 50).detach(), mask)
    yield (leaf(50, 23).detach().t(), mask)
    yield (leaf(23, 50, dtype=torch.bfloat16).detach(), mask)


SAMPLES: dict[str, Callable[[str], Iterator[Arguments]]] = {
    "quantize_latent": latent,
    "int8_training_linear": int8_training_linear,
    "int8_linear_input_grad": int8_linear_input_grad,
    "apply_ste_mask": ste_mask,
    "binary_linear": linear,
    "ternary_linear": linear,
    "linear_input_grad": linear_input_grad,
    "binary_conv": conv,
    "ternary_conv": conv,
    "conv_input_grad": conv_input_grad,
}


def registered() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("bitimpl::") for name in names if name.startswith("bitimpl::"))


def test_the_registry_is_read_and_every_operator_has_samples():
    assert set(registered()) == set(SAMPLES), "give each operator samples here"


@pytest.mark.parametrize("name", registered())
def test_opcheck(name):
    """Schema, fake, autograd registration, and AOT dispatch with static and dynamic shapes."""
    operator = getattr(torch.ops.bitimpl, name).default
    count = 0
    for arguments in SAMPLES[name](name):
        torch.library.opcheck(operator, arguments)
        count += 1
    assert count >= 3


@pytest.mark.parametrize("name", registered())
def test_fakes_have_the_strides_and_dtypes_of_the_operator(name):
    operator = getattr(torch.ops.bitimpl, name).default
    for arguments in SAMPLES[name](name):
        meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
        with torch.no_grad():
            real, fakes = operator(*arguments), operator(*meta)
        pairs = zip(real, fakes, strict=True) if isinstance(real, tuple) else [(real, fakes)]
        for y, fake in pairs:
            assert fake.is_meta
            assert (fake.shape, fake.dtype, fake.stride()) == (y.shape, y.dtype, y.stride())
            written = [a for a in arguments if isinstance(a, Tensor) and a.data_ptr() == y.data_ptr() != 0]
            assert not written
