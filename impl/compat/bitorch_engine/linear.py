"""Binary linear layers of bitorch_engine, by the names of its backends. Each runs on any device."""

from __future__ import annotations

import enum
from typing import Any, Self

import torch
from torch import Tensor, nn

from impl.checks import check_activations, check_choice
from impl.compat.bitorch_engine.base import BinaryLinearBase, LayerRecipe, is_prepared, trained_by_flips
from impl.compat.bitorch_engine.calibration import LearnedScale
from impl.compat.bitorch_engine.quant_operators import init_weight
from impl.compat.bitorch_engine.signs import SignLinear, pack_signs
from impl.layers.base import SCALES
from impl.layers.calls import autocast


class BMM(enum.Enum):
    """Names of bitorch_engine's CUDA kernels. All read the same packed bits here and give the same
    numbers for every shape: the choice is kept for the code that makes it."""

    BSTC32 = 1
    BTC32 = 2
    ADAPTIVE = 3


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
    ) -> None:
        super().__init__(input_features, out_features, device, dtype, bias=bias)

    @classmethod
    def create_clone_from(cls, recipe: LayerRecipe, device: torch.device | str | None = None) -> Self:
        """As :meth:`BinaryLinearBase.create_clone_from`, and packed: the clone is for inference."""
        layer = super().create_clone_from(recipe, device)
        layer.generate_quantized_weight(qweight_only=True)
        return layer


class ScaledBinaryLinear(BinaryLinearBase):
    """y = scale_a scale_w sign(x + bias_a) sign(W)^T + bias.

    ``bias_a`` [input_features] shifts the input, ``scale_a`` (a scalar) is both the magnitude of the
    activations and the window of their gradient; both are learned. ``scale_w`` is the mean magnitude
    of the weight, a scalar or with ``scale="row"`` [out_features]; it is a constant.

    ``scale_a`` starts at 0, and the first batch in training mode sets it to 2 mean|x| (4 mean|x| with
    ``symmetric=False``): run one before compiling, and before wrapping in DDP, whose ranks see
    different batches. In eval mode nothing is stored: until it is set, each row takes its own
    2 (or 4) mean|x|.

    :meth:`prepare_params` and :meth:`set_weight_data` turn the weight into a
    :class:`impl.parameters.BinaryLinearParameter`, one byte a weight, trained by flips of its sign
    (:class:`impl.optim.DiodeMix`); a float weight trains with any optimizer. Gradients:
    :class:`impl.compat.bitorch_engine.signs.SignLinear`.
    """

    bias_a: nn.Parameter
    scale_a: nn.Parameter
    scale_w: Tensor

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
    ) -> None:
        super().__init__(input_features, out_features, device, dtype, symmetric, bias=bias)
        self.scale = check_choice("scale", scale, SCALES)
        factory: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        self.bias_a = nn.Parameter(torch.zeros(self.input_features, **factory))
        self.scale_a = nn.Parameter(torch.zeros((), **factory))
        self._learned_scale = LearnedScale("scale_a", 2.0 if symmetric else 4.0)
        self._register_scale_w(torch.ones(() if scale == "tensor" else self.output_features, **factory))

    def _register_scale_w(self, scale_w: Tensor) -> None:
        self.register_buffer("scale_w", scale_w)

    def reset_parameters(self) -> None:
        """Draw a float weight and the bias anew; shift and scales start again, at 0 and at 1."""
        super().reset_parameters()
        with torch.no_grad():
            self.bias_a.zero_()
            self.scale_a.zero_()
            self.scale_w.fill_(1)
        self._learned_scale.forget()

    def prepare_params(self) -> None:
        """Keep of a float weight the signs about its mean, one byte each, and set ``scale_w`` to its mean
        magnitude. No-op where that is done, or where only the packed signs are left."""
        if self.weight is None or is_prepared(self.weight):
            return
        numbers, scale_w = init_weight(self.weight, scale=self.scale)
        with torch.no_grad():
            self.scale_w.copy_(scale_w)
        self.weight = trained_by_flips(numbers, self.dtype)
        self._drop_qweight()

    def set_weight_data(self, x: Tensor) -> None:
        """As :meth:`BinaryLinearBase.set_weight_data`, followed by :meth:`prepare_params`."""
        super().set_weight_data(x)
        self.prepare_params()

    def set_activation(self, x: Tensor) -> Tensor:
        """x + ``bias_a``; in training mode the first call sets ``scale_a`` from x.

        ValueError where that first x holds NaN or infinity.
        """
        if self.training and not self._learned_scale.is_set(self.scale_a):
            self._learned_scale.calibrate(self.scale_a, x)
        return x + self.bias_a

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
        return self._finish(SignLinear.apply(shifted, *self._operands(), scale, self.scale_w), x.dtype)

    def _check_forward(self, x: Tensor) -> None:
        check_activations(x, self.input_features)  # packed signs could not be shifted

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._learned_scale.forget()
        self._learned_scale.is_set(self.scale_a)  # looks now, so that forward need not


class BinaryLinearCuda(ScaledBinaryLinear):
    """The layer that bitorch_engine runs on CUDA, here on any device: see :class:`ScaledBinaryLinear`.

    ``scale_w`` is a buffer. ``bmm_type`` names a kernel of the original: see :class:`BMM`.
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
    ) -> None:
        super().__init__(input_features, out_features, device, dtype, symmetric, bias=bias, scale=scale)
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
        if bmm_type is not None:
            _check_bmm(bmm_type)
        return super().forward(x)


class BinaryLinearCutlass(ScaledBinaryLinear):
    """The layer that bitorch_engine runs on CUTLASS, here on any device: see :class:`ScaledBinaryLinear`.

    ``scale_w`` is a Parameter without gradient. ``gemm_kernel_id`` is the original's default.
    """

    gemm_kernel_id = 3

    def _register_scale_w(self, scale_w: Tensor) -> None:
        self.scale_w = nn.Parameter(scale_w, requires_grad=False)

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
