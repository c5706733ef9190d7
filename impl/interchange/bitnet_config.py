"""The ``quantization_config`` of Hugging Face transformers' BitNet models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from impl.checks import check_choice

LINEAR_CLASSES = ("bitlinear", "autobitlinear")
QUANTIZATION_MODES = ("offline", "online")

_METHOD = "bitnet"
_DEFAULT_SKIP = ("lm_head",)


@dataclass(frozen=True)
class BitNetConfig:
    """The ``quantization_config`` of a BitNet model, with the defaults of transformers.

    ``modules_to_not_convert``: linear layers whose dotted name contains one of these stay float;
    None stands for the output head.
    """

    linear_class: str = "bitlinear"
    quantization_mode: str = "offline"
    modules_to_not_convert: tuple[str, ...] | None = None
    use_rms_norm: bool = False
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_choice("linear_class", self.linear_class, LINEAR_CLASSES)
        check_choice("quantization_mode", self.quantization_mode, QUANTIZATION_MODES)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From a model's ``config.json`` or the ``quantization_config`` in it.

        Raises ValueError where there is none or it is that of another method; warns of entries that
        it does not know.
        """
        values = dict(config.get("quantization_config", config))
        method = values.pop("quant_method", None)
        if method != _METHOD:
            raise ValueError(
                f"the quantization_config has quant_method {method!r}, only {_METHOD!r} is read here"
            )
        known = {
            name: value for name in cls.__dataclass_fields__ if (value := values.pop(name, None)) is not None
        }
        if values:
            warnings.warn(
                f"quantization_config entries not used: {sorted(values)}", UserWarning, stacklevel=2
            )
        if "modules_to_not_convert" in known:
            known["modules_to_not_convert"] = tuple(known["modules_to_not_convert"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """The ``quantization_config`` for ``config.json``."""
        names = self.modules_to_not_convert
        return {
            "quant_method": _METHOD,
            "linear_class": self.linear_class,
            "quantization_mode": self.quantization_mode,
            "modules_to_not_convert": None if names is None else list(names),
            "use_rms_norm": self.use_rms_norm,
            "rms_norm_eps": self.rms_norm_eps,
        }

    @property
    def online(self) -> bool:
        """Whether the weights are latent ones (``bitlinear`` knows packed ones only)."""
        return self.linear_class == "autobitlinear" and self.quantization_mode == "online"

    def skips(self, name: str) -> bool:
        """Whether the linear layer ``name`` stays float."""
        names = _DEFAULT_SKIP if self.modules_to_not_convert is None else self.modules_to_not_convert
        return any(part in name for part in names)
