"""The ``quantization_config`` of Hugging Face transformers' BitNet models."""

from __future__ import annotations

import math
import re
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

    ``modules_to_not_convert``: which linear layers stay float, see :meth:`skips`; None stands for the
    output head. Raises TypeError or ValueError for other values than transformers writes.
    """

    linear_class: str = "bitlinear"
    quantization_mode: str = "offline"
    modules_to_not_convert: tuple[str, ...] | None = None
    use_rms_norm: bool = False
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_choice("linear_class", self.linear_class, LINEAR_CLASSES)
        check_choice("quantization_mode", self.quantization_mode, QUANTIZATION_MODES)
        names = self.modules_to_not_convert
        if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
            raise TypeError(f"modules_to_not_convert must be a list of names or None, got {names!r}")
        for name in names or ():
            _pattern(name)
        if not isinstance(self.use_rms_norm, bool):
            raise TypeError(f"use_rms_norm must be True or False, got {self.use_rms_norm!r}")
        eps = self.rms_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < math.inf:
            raise ValueError(f"rms_norm_eps must be a number of at least 0, got {eps!r}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From a model's ``config.json`` or the ``quantization_config`` in it.

        Raises ValueError where there is none or it is that of another method; warns of entries that
        it does not know.
        """
        inner = config.get("quantization_config", config)
        if not isinstance(inner, Mapping):
            raise ValueError(f"the quantization_config must be a mapping, got {inner!r}")
        values = dict(inner)
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
        if isinstance(known.get("modules_to_not_convert"), list):
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
        """Whether the linear layer ``name`` (dotted) stays float.

        As transformers 5 decides it: an entry of ``modules_to_not_convert`` is the end of the name, or
        a regular expression for its beginning, up to a dot. "mlp.gate" is "layers.0.mlp.gate", not
        "layers.0.mlp.gate_proj".
        """
        names = _DEFAULT_SKIP if self.modules_to_not_convert is None else self.modules_to_not_convert
        return any(name.endswith(entry) or _pattern(entry).match(name) for entry in names)


def _pattern(entry: str) -> re.Pattern[str]:
    """What a name that ``entry`` stands for begins with: whole parts, with or without their dot."""
    try:
        return re.compile(rf"(?:{entry})(?:(?<=\.)|(?=\.)|$)")
    except re.error as error:
        raise ValueError(f"modules_to_not_convert has {entry!r}, no regular expression: {error}") from error
