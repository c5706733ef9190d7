"""Whether the kernels of int8 training compute on a device what the torch reference computes, to the bit.

Weights are short binary fractions, so that their means are the same in any order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from impl.native.backends import backend
from impl.native.cuda import training
from impl.packing import FORMATS, PackedWeight, unpack_sign_rows

#: rows, columns, group size, whether one scale serves all: row groups, steps and groups that end early, and
#: one shape that gives a whole device work.
_SHAPES = ((45, 200, None, True), (83, 131, 24, False), (32, 256, 64, False), (1040, 520, None, True))
_TOKENS = (1, 5, 70)


#: Weight (on the CPU), rule, per_tensor, group size and format.
Latent = tuple[Tensor, str, bool, int | None, str]


def _latents() -> Iterator[Latent]:
    generator = torch.Generator().manual_seed(0)
    rules = tuple(rule for rule in training.RULES if rule != "sign")
    for number, (rows, cols, group_size, per_tensor) in enumerate(_SHAPES):
        weight = torch.randint(-256, 257, (rows, cols), generator=generator, device="cpu") / 128
        dtype = torch.bfloat16 if number % 2 else torch.float32
        for format in ("two_bit", "base3"):
            rule = rules[(number + (format == "base3")) % len(rules)]
            yield weight.to(dtype), rule, per_tensor, group_size, format


def _reference(
    weight: Tensor, rule: str, per_tensor: bool, group_size: int | None, format: str
) -> tuple[PackedWeight, Tensor]:
    """What :func:`impl.ops.int8_training.quantize_latent` makes of ``weight`` on the CPU; and its mask."""
    from impl.ops import int8_training  # which itself comes after impl.native

    with backend("torch"):
        codes, scales, mask = int8_training.quantize_latent(
            weight, rule, per_tensor, group_size or 0, FORMATS[format], True
        )
    return PackedWeight(format, 1, weight.shape[0], weight.shape[1], group_size, codes, scales), mask


def _binary_latents() -> Iterator[Latent]:
    for weight, _, per_tensor, group_size, format in _latents():
        if format == "two_bit":
            yield weight, "sign", per_tensor, group_size, "binary"


def quantize_weight_complaint(device: torch.device) -> str:
    """What is wrong with ``bitimpl_cuda_quantize_weight`` on ``device``; "" where nothing is."""
    return _quantize_complaint(device, _latents())


def _quantize_complaint(device: torch.device, latents: Iterator[Latent]) -> str:
    for weight, rule, per_tensor, group_size, format in latents:
        expected, expected_mask = _reference(weight, rule, per_tensor, group_size, format)
        codes, scales, mask = training.quantize_weight(
            weight.to(device), rule, per_tensor=per_tensor, group_size=group_size, format=format, mask=True
        )
        assert mask is not None
        for name, found, right in (
            ("codes", codes, expected.codes),
            ("scales", scales, expected.scales),
            ("mask", mask, expected_mask),
        ):
            count = int((found.cpu() != right).count_nonzero())
            if count:
                return f"{count} of {right.numel()} {name} are wrong ({rule}, {_of(expected)})"
    return ""


def input_grad_complaint(device: torch.device) -> str:
    """What is wrong with ``bitimpl_cuda_input_grad`` on ``device``; "" where nothing is."""
    return _gradient_complaint(device, _latents())


def _gradient_complaint(device: torch.device, latents: Iterator[Latent]) -> str:
    from impl.ops import int8_training

    generator = torch.Generator().manual_seed(1)
    for latent in latents:
        weight = _reference(*latent)[0]
        there = replace(weight, codes=weight.codes.to(device), scales=weight.scales.to(device))
        for tokens in _TOKENS:
            grad = torch.randn((tokens, weight.rows), generator=generator, device="cpu")
            grad = grad.to(torch.bfloat16 if tokens % 2 else torch.float32)
            with backend("torch"):
                expected = int8_training.input_grad_python(grad, weight)
            found = training.input_grad(grad.to(device), there).cpu()
            count = int((found != expected).count_nonzero())
            if count:
                return f"{count} of {expected.numel()} values are wrong ({tokens} x {_of(weight)})"
    return ""


def binary_complaint(device: torch.device) -> str:
    """What is wrong with both of these for binary weights on ``device``; "" where nothing is."""
    return _quantize_complaint(device, _binary_latents()) or _gradient_complaint(device, _binary_latents())


def apply_mask_complaint(device: torch.device) -> str:
    """What is wrong with ``bitimpl_cuda_apply_mask`` on ``device``; "" where nothing is."""
    generator = torch.Generator().manual_seed(2)
    for rows, cols in ((1, 1), (45, 203), (64, 512)):
        mask = torch.randint(0, 256, (rows, -(-cols // 8)), generator=generator, device="cpu").to(torch.uint8)
        inside = unpack_sign_rows(mask, cols) > 0
        for dtype in (torch.float32, torch.bfloat16):
            grad = torch.randn((rows, cols), generator=generator, device="cpu").to(dtype)
            found = grad.to(device, copy=True)
            training.apply_mask(found, mask.to(device))
            count = int((found.cpu() != torch.where(inside, grad, 0)).count_nonzero())
            if count:
                return f"{count} of {grad.numel()} values are wrong ({rows} x {cols}, {dtype})"
    return ""


def _of(weight: PackedWeight) -> str:
    return f"{weight.format}, {weight.rows} x {weight.cols}, group_size {weight.group_size}"


CHECKS = {
    "quantize_weight": quantize_weight_complaint,
    "input_grad": input_grad_complaint,
    "apply_mask": apply_mask_complaint,
    "binary_training": binary_complaint,
}
