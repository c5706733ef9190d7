"""The arguments of ``nn.ConvNd`` as attributes of a layer, all of them read from its geometry."""

from __future__ import annotations

from impl.geometry import ConvGeometry, Sizes


class ConvAttributes:
    """Mixin of convolutions: what ``nn.ConvNd`` calls the parts of a :class:`ConvGeometry`.

    The weight, its packed form and the border are made for one geometry, so none of them can be
    set: AttributeError. Build another layer instead.
    """

    _geometry: ConvGeometry
    _padding_name: str | None

    def _take_geometry(self, geometry: ConvGeometry, padding: Sizes | str) -> None:
        """Keep ``geometry``, and ``padding`` where it was asked for by name."""
        self._geometry = geometry
        self._padding_name = padding if isinstance(padding, str) else None

    @property
    def geometry(self) -> ConvGeometry:
        """Kernel, stride, padding, dilation, groups and the value of the border."""
        return self._geometry

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Sizes of the kernel."""
        return self._geometry.kernel

    @property
    def stride(self) -> tuple[int, ...]:
        """Step of the kernel along each dimension."""
        return self._geometry.stride

    @property
    def padding(self) -> str | tuple[int, ...]:
        """Positions added before and after each dimension, or "same" or "valid" as it was given."""
        return self._padding_name or tuple(before for before, _ in self._geometry.padding)

    @property
    def dilation(self) -> tuple[int, ...]:
        """Distance of the kernel's positions along each dimension."""
        return self._geometry.dilation

    @property
    def groups(self) -> int:
        """Groups of channels that do not see each other."""
        return self._geometry.groups

    @property
    def padding_value(self) -> float:
        """What added positions hold: -1, 0 or +1."""
        return float(self._geometry.padding_value)
