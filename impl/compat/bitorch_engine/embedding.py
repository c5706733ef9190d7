"""Binary embeddings of bitorch_engine, whose bits can be trained as they are.

Against the original: they construct and train on stock torch; any index shape and any ``padding_idx``;
scales are means over exactly ``embedding_dim`` weights; the update is descent, of rows that belong to
one table only; preparing twice, or after loading, changes nothing, whatever the bits.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.compat.bitorch_engine.signs import check_packed
from impl.layers.embedding import BinaryTable, Lookup
from impl.layers.embedding_bag import BinaryEmbeddingBag as BinaryBag
from impl.packing import unpack_sign_rows
from impl.parameters import BinaryEmbeddingParameter
from impl.quantizers import Quantized


class TrainableBits(BinaryTable):
    """A binary table with a third form between the float weight and the packed bits: *prepared*.

    There, ``weight`` is a :class:`impl.parameters.BinaryEmbeddingParameter`: one bit a weight and a scale
    per row, trained by flips (:class:`impl.optim.DiodeMix`) of the rows that batches have looked up.
    Its state is the original's: ``qweight``, uint8 [num_embeddings, ceil(embedding_dim / 8)], and
    ``scale_w`` [num_embeddings, 1].

    :meth:`pack` makes the bits constants. Each form loads the states of all, and ``qweight`` as a
    prepared table.
    """

    centred: ClassVar[bool]
    """Whether the mean of a float weight is taken off before its signs are kept."""

    @property
    def qweight(self) -> Tensor | None:
        """The trainable bits where the table is prepared, uint8 [num_embeddings, bytes] where it is
        packed, None where the weight is float."""
        if self.codes is not None:
            return self.codes.view(self.num_embeddings, -1)
        return self._bits

    @property
    def scale_w(self) -> Tensor | None:
        """Scales [num_embeddings, 1] that belong to :attr:`qweight`."""
        if self.scales is not None:
            return self.scales.view(-1, 1)
        return None if self._bits is None else self._bits.scales.view(-1, 1)

    @property
    def _bits(self) -> BinaryEmbeddingParameter | None:
        """The weight of a prepared table."""
        weight: Tensor | None = self.weight
        return weight if isinstance(weight, BinaryEmbeddingParameter) else None

    def prepare_params(self) -> None:
        """Go from a float weight to the prepared form. No-op where that is done, or where the table is
        packed. ValueError where the weight holds NaN or infinity."""
        if self.weight is None or self._bits is not None:
            return
        with torch.no_grad():
            weight = self.weight.detach()
            if self.centred:
                weight = weight - weight.mean()
                if self.padding_idx is not None:
                    weight[self.padding_idx] = 0
        self.weight = _as_parameter(BinaryEmbeddingParameter(weight, packed=True, dtype=self.weight_dtype))

    def generate_quantized_weight(self, qweight_only: bool = False) -> None:
        """Pack with ``qweight_only``. Without, the weight is to be kept: a table holds one form of it at
        a time, so that it stays as it is."""
        if qweight_only:
            self.pack()

    def reset_parameters(self) -> None:
        """Draw a float weight anew. Not for packed tables."""
        if self._bits is not None:
            self.weight = self._float_memory(self._bits)
        super().reset_parameters()

    def _float_memory(self, like: Tensor) -> nn.Parameter:
        return nn.Parameter(torch.empty(like.shape, dtype=like.dtype, device=like.device))

    def _rows(self, index: Tensor) -> Tensor:
        if self._bits is not None:
            return F.embedding(index, self._bits, self.padding_idx)
        return super()._rows(index)

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        if isinstance(weight, BinaryEmbeddingParameter):
            return Quantized(weight.signs().unsqueeze(0), weight.scales.view(1, -1, 1))
        return super()._quantize(weight, final=final)

    # ---- states -----------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._bits is not None and not keep_vars:
            del destination[prefix + "weight"]
            destination[prefix + "qweight"] = self._bits.codes
            destination[prefix + "scale_w"] = self._bits.scales.view(-1, 1)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the form of the state given, after checking that it fits this layer."""
        try:
            bits = self._take_bits(state_dict, prefix)
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
            return
        held = self.codes if self.weight is None else self.weight
        assert held is not None
        if bits is not None:
            state_dict[prefix + "weight"] = bits
            self.codes = self.scales = self.packing = None
            memory = torch.ones(bits.shape, dtype=torch.bool, device=held.device)
            self.weight = _as_parameter(BinaryEmbeddingParameter(memory, dtype=bits.dtype))
        elif prefix + "weight" in state_dict and self._bits is not None:
            self.weight = self._float_memory(self._bits)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take_bits(self, state_dict: dict[str, Any], prefix: str) -> BinaryEmbeddingParameter | None:
        """The trainable bits in a state, taken out of it; None where it holds another form.

        ``state_dict`` is a copy of the caller's dictionary.
        """
        weight, packed = state_dict.get(prefix + "weight"), state_dict.get(prefix + "qweight")
        shape = (self.num_embeddings, self.embedding_dim)
        if packed is not None:
            if weight is not None:
                raise ValueError("the state holds a weight and packed signs: keep one of them")
            packed = check_packed(packed, *shape)
            scales = state_dict.get(prefix + "scale_w")
            if scales is None:
                raise ValueError("the state holds qweight without the scale_w that belongs to it")
            if tuple(scales.shape) not in ((shape[0], 1), (shape[0],)):
                raise ValueError(f"scale_w has shape {list(scales.shape)}, this layer needs [{shape[0]}, 1]")
            del state_dict[prefix + "qweight"], state_dict[prefix + "scale_w"]
            signs = unpack_sign_rows(packed, shape[1])
            return BinaryEmbeddingParameter(
                signs, scales=scales.flatten().to(torch.float32), packed=True, dtype=self.weight_dtype
            )
        if weight is None or (
            weight.is_floating_point() and not isinstance(weight, BinaryEmbeddingParameter)
        ):
            return None
        if tuple(weight.shape) != shape:
            raise ValueError(f"weight has shape {list(weight.shape)}, this layer needs {list(shape)}")
        if weight.is_floating_point() or weight.dtype == torch.bool:
            return BinaryEmbeddingParameter(weight, packed=True, dtype=self.weight_dtype)
        raise TypeError(f"weight must be floating point, or bool signs, got {weight.dtype}")


class BinaryEmbeddingCuda(Lookup, TrainableBits):
    """The embedding that bitorch_engine runs on CUDA, here on any device: rows of -1 and +1 times a
    scale per row.

    Until :meth:`prepare_params` is called the weight is float and trains with any optimizer, as
    :class:`impl.layers.BinaryEmbedding` does. It keeps the signs of w - mean(w) and mean |w - mean(w)|
    of each row; the row ``padding_idx`` is zero and receives no gradient.
    """

    centred: ClassVar[bool] = True

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device, dtype)


class BinaryEmbeddingBag(BinaryBag, TrainableBits):
    """The vote of the signs of a bag's rows, -1 or +1 in the dtype of the weight, +1 where they tie.

    It starts prepared, with random bits, as there is no float weight in the original. Indices equal to
    ``padding_idx`` do not vote, and a bag of nothing is zero. The gradient of a bag passes whole to each
    of its rows. Bags are the rows of an index [..., length], or lie between ``offsets``.
    """

    centred: ClassVar[bool] = False
    modes: ClassVar[tuple[str, ...]] = ("majority",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        *,
        mode: str = "majority",
        include_last_offset: bool = False,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            device,
            dtype,
            mode=mode,
            include_last_offset=include_last_offset,
        )

    def reset_parameters(self) -> None:
        """Draw trainable bits anew. Not for packed tables."""
        weight = self._latent("reset_parameters()")
        bits = torch.rand(weight.shape, device=weight.device) >= 0.5
        self.weight = _as_parameter(BinaryEmbeddingParameter(bits, dtype=weight.dtype))


def _as_parameter(parameter: Tensor) -> nn.Parameter:
    # A Tensor subclass that answers isinstance(..., nn.Parameter), which the checker cannot know.
    return cast("nn.Parameter", parameter)
