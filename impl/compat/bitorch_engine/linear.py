"""Binary linear layers of bitorch_engine, by the names of its backends. Each runs on any device."""

from __future__ import annotations

import enum
from typing import Self

import torch
from torch import Tensor, nn

from impl.checks import check_activations
from impl.compat.bitorch_engine.base import BinaryLinearBase, LayerRecipe
from impl.compat.bitorch_engine.sign_layer import ScaledSigns
from impl.compat.bitorch_engine.signs import SignLinear, pack_signs, precision_of
from impl.layers.calls import autocast
from impl.native.cuda import preferring


class BMM(enum.Enum):
    """Names of bitorch_engine's CUDA kernels, for ours of their kind: ``BSTC32`` counts bits in registers
    (kernel "popcount"), ``BTC32`` multiplies them on tensor cores ("bmma"), ``ADAPTIVE`` leaves the choice
    to the library.

    All read the same packed bits and give the same numbers, for every number of rows. On other devices,
    in compiled graphs, and where the kernel was not built or cannot serve a call, the library chooses.
    """

    BSTC32 = 1
    BTC32 = 2
    ADAPTIVE = 3


_KERNELS = {BMM.BSTC32: "popcount", BMM.BTC32: "bmma"}


class BinaryLinearCPP(BinaryLinearBase):
    """The layer that bitorch_engine runs on the CPU: the plain sign product, float weights."""

    def __init__(
        self,
        input_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        *,
        dtype: torch.dtype = torch.float,
        bias: bool = False,
        backward: str = "float",
    ) -> None:
        super().__init__(input_features, out_features, device, dtype, bias=bias, backward=backward)

    @classmethod
    def create_clone_from(cls, recipe: LayerRecipe, device: torch.device | str | None = None) -> Self:
        """As :meth:`BinaryLinearBase.create_clone_from`, and packed: the clone is for inference."""
        layer = super().create_clone_from(recipe, device)
        layer.generate_quantized_weight(qweight_only=True)
        return layer


class ScaledBinaryLinear(ScaledSigns, BinaryLinearBase):
    """y = scale_a scale_w sign(x + bias_a) sign(W)^T + bias.

    ``bias_a`` is [input_features], ``scale_w`` with ``scale="row"`` [out_features]; a sample is a row of
    x. Otherwise as :class:`impl.compat.bitorch_engine.sign_layer.ScaledSigns` says. Gradients:
    :class:`impl.compat.bitorch_engine.signs.SignLinear`.
    """

    def __init__(
        self,
        input_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        symmetric: bool = True,
        *,
        bias: bool = False,
        scale: str = "tensor",
        backward: str = "float",
    ) -> None:
        super().__init__(input_features, out_features, device, dtype, symmetric, bias=bias, backward=backward)
        self._add_scales(self.input_features, scale)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out_features] of x [..., input_features], in the dtype of x (autocast's, where on).

        x: float32, bfloat16 or float16, any leading dimensions and strides, empty batches included.
        TypeError or ValueError otherwise.
        """
        self._check_forward(x)
        x = autocast(x)
        shifted = self.set_activation(x)
        scale: Tensor = self.scale_a
        if not self.training and not self._learned_scale.is_set(scale):
            scale = self._learned_scale.of_rows(x)
        precision = precision_of(x, self.backward)
        y = SignLinear.apply(shifted, *self._operands(), scale, self.scale_w, precision)
        return self._finish(y, x.dtype)

    def _check_forward(self, x: Tensor) -> None:
        check_activations(x, self.input_features)  # packed signs could not be shifted


class BinaryLinearCuda(ScaledBinaryLinear):
    """The layer that bitorch_engine runs on CUDA, here on any device: see :class:`ScaledBinaryLinear`.

    ``scale_w`` is a buffer. ``bmm_type`` chooses the kernel on CUDA devices: see :class:`BMM`.
    """

    def __init__(
        self,
        input_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        symmetric: bool = True,
        *,
        bmm_type: BMM = BMM.ADAPTIVE,
        bias: bool = False,
        scale: str = "tensor",
        backward: str = "float",
    ) -> None:
        super().__init__(
            input_features, out_features, device, dtype, symmetric, bias=bias, scale=scale, backward=backward
        )
        self.bmm_type = _check_bmm(bmm_type)

    @property
    def device_id(self) -> int:
        """Index of the CUDA device that the layer is on, -1 on the CPU."""
        return self._place.get_device()

    @staticmethod
    def w_pack(weights: Tensor, bmm_type: BMM = BMM.ADAPTIVE) -> Tensor:
        """Signs of ``weights`` [out, in], float or int8, as ``qweight``: uint8 [out, ceil(in / 8)].
        The same bits for every ``bmm_type``."""
        _check_bmm(bmm_type)
        return pack_signs(weights.detach())

    def forward(self, x: Tensor, bmm_type: BMM | None = None) -> Tensor:
        """y [..., out_features] of x [..., input_features], in the dtype of x (autocast's, where on).

        x: float32, bfloat16 or float16, any leading dimensions and strides, empty batches included.
        ``bmm_type`` None is the constructor's; it changes neither numbers nor the constructor's choice.
        """
        kernel = _KERNELS.get(self.bmm_type if bmm_type is None else _check_bmm(bmm_type))
        if kernel is None or torch.compiler.is_compiling():
            return super().forward(x)
        with preferring(kernel, self.device):
            return super().forward(x)


class BinaryLinearCutlass(ScaledBinaryLinear):
    """The layer that bitorch_engine runs on CUTLASS, here on any device: see :class:`ScaledBinaryLinear`.

    On CUDA devices packed weights are multiplied by CUTLASS where it was built and may be used
    (``impl.capabilities().cuda.cutlass``), else by the kernels of other layers: the same numbers.
    ``scale_w`` is a Parameter without gradient. ``gemm_kernel_id`` is the original's default.
    """

    gemm_kernel_id = 3

    def _register_scale_w(self, scale_w: Tensor) -> None:
        self.scale_w = nn.Parameter(scale_w, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`ScaledBinaryLinear.forward`."""
        with preferring("cutlass", self.device):
            return super().forward(x)

    def select_gemm_kernel(self, x: Tensor) -> None:
        """Check that the layer takes ``x``. Kernels are chosen by shape in each call, on every device,
        so there is nothing to look up: ``gemm_kernel_id`` stays."""
        self._check_forward(x)


def get_best_binary_implementation() -> type[BinaryLinearBase]:
    """:class:`BinaryLinearCuda` where CUDA is available, else :class:`BinaryLinearCPP`.

    As in the original they compute different functions (with and without scales). Either runs
    everywhere: name the class where a model has to mean the same on every machine.
    """
    return BinaryLinearCuda if torch.cuda.is_available() else BinaryLinearCPP


BinaryLinear = get_best_binary_implementation()


def _check_bmm(bmm_type: BMM) -> BMM:
    if not isinstance(bmm_type, BMM):
        raise TypeError(f"bmm_type must be one of {', '.join(map(str, BMM))}, got {bmm_type!r}")
    return bmm_type
