"""What the peers' kinds have in common. Torch-free."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from bitbench.layers.base import LayerKind
from bitbench.layers.linear import float_tolerance
from bitbench.plugins import join_names

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from torch import nn

EXTRA = "pip install 'bitbench[peers]'"
"""Installs every peer."""


@dataclass(frozen=True)
class Package:
    """A package that a peer needs."""

    module: str
    """Name to import."""
    distribution: str
    """Name to install."""

    def installed(self) -> bool:
        """Whether it can be found. Imports nothing of it."""
        try:
            return find_spec(self.module) is not None
        except ValueError:  # in sys.modules without a spec: somebody made it by hand
            return True

    def load(self) -> ModuleType:
        """The imported module; :class:`~bitbench.workloads.base.Unsupported` where that fails."""
        from bitbench.workloads.base import Unsupported

        try:
            return import_module(self.module)
        except ImportError as error:
            raise Unsupported(
                f"{self.distribution} cannot be imported ({error}): {install([self])}"
            ) from error


def install(packages: list[Package]) -> str:
    """The command that installs ``packages``."""
    return f"pip install {' '.join(package.distribution for package in packages)}, or {EXTRA}"


class Peer(LayerKind):
    """A layer of another project: for inference on the CPU, in the form its project runs it."""

    packages: ClassVar[tuple[Package, ...]] = ()
    """All of these are needed."""
    fixed_numerics: ClassVar[dict[str, Any]] = {}
    """What :meth:`numerics` says of a kind whose options do not change its numbers."""
    roundings: ClassVar[int | None] = None
    """float32 operations on an output whose sum is an exact integer; None: the sum is in float32."""
    kernel_prefix: ClassVar[str]
    """How the names of the peer's kernels begin: its backend, and what they have in common."""
    kernel_parts: ClassVar[tuple[str, ...]]
    """What the parts of such a name say after the backend."""

    def missing(self) -> str | None:
        """Which package has to be installed and how, or None."""
        lacking = [package for package in self.packages if not package.installed()]
        if not lacking:
            return None
        names = join_names(package.distribution for package in lacking)
        return f"{names} {'is' if len(lacking) == 1 else 'are'} not installed: {install(lacking)}"

    def numerics(self, spec: Any) -> dict[str, Any]:  # noqa: ARG002 - for kinds whose options do not matter
        return dict(self.fixed_numerics)

    def tolerance(self, spec: Any, in_features: int) -> float:  # noqa: ARG002 - no option changes the sums
        if self.roundings is None:
            return float_tolerance(in_features)
        return self.roundings * 2.0**-24 * 2  # half a unit in the last place each, of outputs up to twice

    def dispatch(self, spec: Any, kernel: str) -> dict[str, str]:  # noqa: ARG002 - the name says it all
        backend, *parts = kernel.split("/")
        if not f"{kernel}/".startswith(f"{self.kernel_prefix}/") or len(parts) != len(self.kernel_parts):
            return {}
        said = dict(zip(self.kernel_parts, parts, strict=True))
        return {"backend": backend, "packed": "yes", "device": "cpu", **said}

    def unsupported(self, spec: Any, device: str) -> str | None:  # noqa: ARG002 - any of its options will do
        if device != "cpu":
            return f"{self.name} is measured on the CPU only, not on {device}"
        return self.missing()

    def trainable(
        self,
        spec: Any,  # noqa: ARG002 - whatever is asked for, there is none
        in_features: int,  # noqa: ARG002
        out_features: int,  # noqa: ARG002
        *,
        bias: bool,  # noqa: ARG002
    ) -> nn.Module:
        from bitbench.workloads.base import Unsupported

        raise Unsupported(f"{self.name} is for inference; train `kind: linear` or `ternary` instead")

    def reference(self, spec: Any, module: Any, x: torch.Tensor, rows: slice) -> torch.Tensor:
        from bitbench.layers.reference import product

        bias = None if module.bias is None else module.bias[rows]
        return product(self.activations(spec, x), self.decoded(spec, module, rows), bias, None)

    @abstractmethod
    def activations(self, spec: Any, x: torch.Tensor) -> torch.Tensor:
        """``x [M, in]`` as the peer's integers and scales represent it, float64."""

    @abstractmethod
    def decoded(self, spec: Any, module: Any, rows: slice) -> torch.Tensor:
        """Weights ``[rows, in]`` of output features ``rows`` from the bytes ``module`` holds, float64."""

    def kernel(self, module: Any) -> str:
        return str(module.kernel)


def random_bias(out_features: int, bias: bool, generator: torch.Generator) -> torch.Tensor | None:
    """Bias ``[out]`` uniform in -1 .. 1, or None."""
    import torch

    return torch.empty(out_features).uniform_(-1, 1, generator=generator) if bias else None


def kept_bias(linear: nn.Linear) -> torch.Tensor | None:
    """Float32 copy of the bias of a layer to convert, or None."""
    return None if linear.bias is None else linear.bias.detach().float().clone()


def blockwise_int8(x: torch.Tensor, block: int) -> torch.Tensor:
    """``x [M, in]`` rounded to int8 with a scale per row and ``block`` columns, float64.

    q = round half to even of x * (127 / amax), amax over the block, in float32; the last block may
    be shorter. A block of zeros stays zero.
    """
    import torch

    tokens, in_features = x.shape
    padded = torch.nn.functional.pad(x.float(), (0, -in_features % block)).view(tokens, -1, block)
    amax = padded.abs().amax(dim=-1, keepdim=True)
    levels = torch.full_like(amax, 127)
    q = (padded * torch.where(amax > 0, levels / amax, 0)).round()
    return (q.double() * (amax / levels).double()).view(tokens, -1)[:, :in_features]
