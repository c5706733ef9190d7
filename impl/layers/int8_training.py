"""Training of binary and ternary linear layers with int8 products in place of float ones."""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from impl import native, ops
from impl.checks import check_weight
from impl.layers.calls import autocast, is_plain, refuse_derivatives
from impl.layers.quantized import QuantizedLayer
from impl.ops.int8_training import RULES
from impl.packing import FORMATS, PackedWeight
from impl.parameters import BinaryParameter
from impl.quantizers import Quantized

#: Estimators whose slope is 1, or 1 and 0.
ESTIMATORS = ("identity", "clip")


class Int8Training(QuantizedLayer):
    """The half of a linear layer that trains one binary or ternary component with int8 products.

    With ``int8_training`` the latent form computes what the packed one computes, from codes that are made
    once for every state of the weight: int8 activations (or signs) times codes, exact in integers. Backwards

    * grad_x: each row of grad times the scales is rounded to int8 (absmax of the row), multiplied by the
      codes, exactly, and scaled back (``bitimpl_cuda_input_grad`` in ``impl_cuda.h``); with signs for
      activations, 0 outside their window (:func:`impl.quantizers.fake_quantize_activations`);
    * grad_weight: grad^T times the quantised activations, in the dtype of x, where the estimator passes it;
    * grad_bias: the sum of grad.

    The codes are kept while the layer is in training mode, on one stream, and neither ``weight._version``
    nor the weight's memory changes; an optimizer's step, ``train()``, ``eval()``, ``load_state_dict()`` and
    moves make them anew. In eval mode, in compiled graphs, and once a CUDA graph has captured the layer,
    every call makes its own. Two ways of writing the weight leave no trace: ``weight.data`` between two
    training passes, and the replay of a CUDA graph that holds the optimizer without the layer. Call
    ``train()`` after either.
    """

    int8_rules: ClassVar[tuple[str, ...]] = tuple(rule for rule in RULES if rule != "sign")
    """Values of ``rule`` that int8 products can serve."""
    int8_activation_bits: ClassVar[tuple[int, ...]] = (8,)
    """Values of ``activation_bits`` that they can serve."""
    rule: str
    refit: bool = False
    _int8_training: bool = False
    _captured: bool = False

    @property
    def int8_training(self) -> bool:
        """Whether the latent form computes with int8 products. Setting it raises ValueError where the layer's
        options have no such products."""
        return self._int8_training

    @int8_training.setter
    def int8_training(self, value: bool) -> None:
        if type(value) is not bool:
            raise TypeError(f"int8_training must be True or False, got {value!r}")
        if value:
            self._check_int8_training()
        self._int8_training = value
        self.__dict__["_prepared"] = None

    def _check_int8_training(self) -> None:
        """ValueError for options that int8 products cannot serve."""
        for name, own, allowed in (
            ("activation_bits", self.activation_bits, self.int8_activation_bits),
            ("k", self.components, (1,)),
            ("rule", self.rule, self.int8_rules),
            ("ste", self.ste, ESTIMATORS),
        ):
            if own not in allowed:
                choices = " or ".join(repr(choice) for choice in allowed)
                raise ValueError(
                    f"int8_training=True goes with {name}={choices}, this layer has {name}={own!r}: "
                    "change it, or leave int8_training out"
                )
        if getattr(self, "_strength", None) is not None:  # blended: see impl.training
            raise ValueError(
                "int8_training=True needs whole codes, this layer blends float values in: finish() its "
                "Annealing first"
            )

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; the weight is quantised anew."""
        if not self.is_packed:
            self.__dict__["_prepared"] = None
        return super().train(mode)

    # ---- codes ------------------------------------------------------------------------------

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        if not self._int8_training or (final and self.refit):
            return super()._quantize(weight, final=final)  # type: ignore[safe-super]  # mixed in before a layer
        # By the quantiser that training used.
        codes, scales, _ = self._quantize_latent(check_weight(weight, check_finite=final))
        packed = PackedWeight(
            self.format, 1, self.out_features, self.in_features, self.group_size, codes, scales
        )
        return Quantized(packed.unpack(), scales, self.group_size)

    def _quantize_latent(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Packed codes, float32 scales, and the mask of the estimator."""
        masked = self.ste == "clip"
        per_tensor = self.group_size is None and self._scale_rows() == 1
        codes, scales, mask = torch.ops.bitimpl.quantize_latent(
            weight.detach(), self.rule, per_tensor, self.group_size or 0, FORMATS[self.format], masked
        )
        return codes, scales, mask if masked else None

    def _latent_codes(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scales and mask of ``weight``: those kept, where they still hold."""
        if _capturing(
            weight
        ):  # replays change the weight unseen, and the codes of the capture are not made yet
            self._captured = True
        keeps = self.training and not self._captured and not weight.is_inference()
        kept = self._prepared
        if keeps and isinstance(kept, _LatentCodes) and kept.hold_for(weight):
            return kept.tensors
        codes, scales, mask = self._quantize_latent(weight)
        tensors = (codes, scales.to(self.scale_dtype), mask)
        self.__dict__["_prepared"] = _LatentCodes.of(weight, tensors) if keeps else None
        return tensors

    # ---- forward ----------------------------------------------------------------------------

    def _forward_latent(self, x: Tensor) -> Tensor:
        if not self._int8_training:
            y: Tensor = super()._forward_latent(x)  # type: ignore[misc]  # the layer's own
            return y
        weight: Tensor = self._latent("the latent weight")
        if isinstance(weight, BinaryParameter):
            raise TypeError(
                f"int8_training=True trains a float weight, this one is a {type(weight).__name__}, which "
                "holds signs only: set int8_training=False"
            )
        refuse_derivatives(x, "layers with int8_training=True", "set int8_training=False")
        x = autocast(ops.check_input(x, self.in_features, weight.device))
        bias = self.bias
        if torch.compiler.is_compiling():
            return self._int8_operator(x, weight, bias)
        plain = (x.is_cpu or x.is_cuda) and all(is_plain(t) for t in (x, weight, bias) if t is not None)
        if not plain:
            return self._int8_operator(x, weight, bias)
        codes, scales, mask = self._latent_codes(weight)
        y = ops.Int8TrainingFunction.apply(
            x,
            weight,
            bias,
            codes,
            scales,
            mask,
            self.group_size or 0,
            FORMATS[self.format],
            self.activation_bits,
        )
        self._serve(native.last_kernel())
        return y

    def _int8_operator(self, x: Tensor, weight: Tensor, bias: nn.Parameter | None) -> Tensor:
        codes, scales, mask = self._quantize_latent(weight)
        y: Tensor = torch.ops.bitimpl.int8_training_linear(
            x,
            weight,
            bias,
            codes,
            scales.to(self.scale_dtype),
            mask,
            self.group_size or 0,
            FORMATS[self.format],
            self.activation_bits,
        )
        return y

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return f"{shown}, int8_training=True" if self._int8_training else shown


# ---- how long codes hold --------------------------------------------------------------------


def _capturing(weight: Tensor) -> bool:
    """Whether a CUDA graph is being captured on the weight's device."""
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


def _stream(weight: Tensor) -> int:
    """The stream that works on the weight's device now: what another one makes need not be there yet."""
    return torch.cuda.current_stream(weight.device).cuda_stream if weight.is_cuda else 0


class _Steps:
    """Steps that optimizers have made in this process."""

    count = 0


@functools.cache
def _watch_optimizers() -> None:
    # Some optimizers write through weight.data, and FSDP2 gathers its shards without a new version.
    register_optimizer_step_post_hook(_count_step)


def _count_step(*_: Any) -> None:
    _Steps.count += 1


@dataclass(frozen=True, eq=False)
class _LatentCodes:
    """Codes, scales and mask of a latent weight, and what tells that it has not changed since."""

    tensors: tuple[Tensor, Tensor, Tensor | None]
    weight: weakref.ref[Tensor]
    version: int
    pointer: int
    steps: int
    stream: int

    @classmethod
    def of(cls, weight: Tensor, tensors: tuple[Tensor, Tensor, Tensor | None]) -> Self:
        _watch_optimizers()
        return cls(
            tensors, weakref.ref(weight), weight._version, weight.data_ptr(), _Steps.count, _stream(weight)
        )

    def hold_for(self, weight: Tensor) -> bool:
        """Whether ``weight`` is the tensor that was quantised, unchanged."""
        return (
            self.weight() is weight
            and self.version == weight._version
            and self.pointer == weight.data_ptr()
            and self.steps == _Steps.count
            and self.stream == _stream(weight)
        )
