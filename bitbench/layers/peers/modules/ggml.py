"""Ternary weights in llama.cpp's formats, multiplied by ggml's CPU backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitbench.layers.peers.modules import ggml_library
from bitbench.layers.peers.modules.base import PeerLinear, check_tensor
from bitbench.layers.peers.peer import Package


class GgmlLinear(PeerLinear):
    """``codes`` uint8 ``[out, row bytes]``: rows as a GGUF file holds them, block scales among the codes.

    One ``ggml_mul_mat`` a call, with torch's number of threads; it quantises the activations to
    ``Q8_K`` itself. Reads x and writes y where torch has them: no copies.
    """

    codes: Tensor

    def __init__(
        self,
        in_features: int,
        codes: Tensor,
        bias: Tensor | None,
        ggml_type: str,
        packages: tuple[Package, ...],
    ) -> None:
        super().__init__(in_features, codes.shape[0], bias)
        self.ggml_type = ggml_type
        self.packages = packages
        self._ggml = ggml_library.load(packages)
        width = self._ggml.row_bytes(ggml_type, in_features)
        check_tensor("codes", codes, torch.uint8, (codes.shape[0], width))
        self.register_buffer("codes", codes)

    @property
    def kernel(self) -> str:
        ggml = self._ggml
        return f"ggml/mul_mat/{self.ggml_type}/q8_K/{ggml.isa}/{ggml.version}/{ggml.source.label}"

    def rows(self, x: Tensor) -> Tensor:
        y = torch.empty(x.shape[0], self.out_features)
        graph = ggml_library.product(
            self._ggml, self.ggml_type, self.out_features, self.in_features, x.shape[0]
        )
        self._ggml.compute(graph, self.codes.data_ptr(), x.data_ptr(), y.data_ptr(), torch.get_num_threads())
        return y if self.bias is None else y.add_(self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ggml": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._ggml = ggml_library.load(self.packages)


def encode(weight: Tensor, type: str, packages: tuple[Package, ...]) -> Tensor:
    """Rows of ``type``, uint8 ``[out, row bytes]``, of float32 ``weight [out, in]`` by ggml's own code.

    It keeps the largest |w| of each block of 256 as its scale and rounds w / scale to -1, 0 or +1.
    """
    ggml = ggml_library.load(packages)
    rows, cols = weight.shape
    values = weight.float().contiguous()
    codes = torch.empty(rows, ggml.row_bytes(type, cols), dtype=torch.uint8)
    ggml.quantize(type, values.data_ptr(), codes.data_ptr(), rows, cols)
    return codes
