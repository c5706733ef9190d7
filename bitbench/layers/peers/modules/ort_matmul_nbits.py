"""onnxruntime's ``MatMulNBits``: a model of one node, built in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitbench.layers.peers.modules.base import PeerLinear, check_tensor

DOMAIN = "com.microsoft"
ACCURACY_LEVEL = 4
"""Activations are quantised to int8 by block and multiplied in integers."""
OPSET, IR_VERSION = 21, 10


class MatMulNBits(PeerLinear):
    """``codes`` uint8 ``[out, blocks, block_size * bits / 8]``, ``scales`` float32 ``[out, blocks]``.

    Codes lie low bits first and stand for code - 2**(bits - 1). The session keeps a copy of them in an
    order of its own, which cannot be seen from Python; the buffers here are what goes into a model
    file. It is built at the first call, or by :meth:`prepare`, with as many threads as torch has then.
    """

    codes: Tensor
    scales: Tensor
    _session: Any

    def __init__(
        self, in_features: int, codes: Tensor, scales: Tensor, bias: Tensor | None, bits: int, block_size: int
    ) -> None:
        super().__init__(in_features, codes.shape[0], bias)
        blocks, width = -(-in_features // block_size), block_size * bits // 8
        check_tensor("codes", codes, torch.uint8, (codes.shape[0], blocks, width))
        check_tensor("scales", scales, torch.float32, (codes.shape[0], blocks))
        self.bits = bits
        self.block_size = block_size
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self._session = None

    @property
    def kernel(self) -> str:
        import onnxruntime

        return f"onnxruntime/matmul_nbits/{self.bits}bit/int8/{onnxruntime.__version__}"

    def prepare(self) -> None:
        """Build the session, so that the first call need not."""
        if self._session is None:
            self._session = _session(self)

    def rows(self, x: Tensor) -> Tensor:
        self.prepare()
        (y,) = self._session.run(None, {"x": x.numpy()})
        return torch.from_numpy(y)

    def __getstate__(self) -> dict[str, Any]:
        # A session can be neither copied nor stored; a copy builds its own.
        return {**self.__dict__, "_session": None}

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        super()._load_from_state_dict(*arguments, **named)
        self._session = None  # it holds the weights from before


def _session(layer: MatMulNBits) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        _model(layer).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _model(layer: MatMulNBits) -> Any:
    """An ONNX model of one node: x ``[M, in]`` -> y ``[M, out]``."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {"codes": layer.codes, "scales": layer.scales}
    inputs = ["x", "codes", "scales"]
    if layer.bias is not None:
        weights["bias"] = layer.bias
        inputs += ["", "", "bias"]  # no zero points, no group index
    node = helper.make_node(
        "MatMulNBits",
        inputs,
        ["y"],
        domain=DOMAIN,
        K=layer.in_features,
        N=layer.out_features,
        bits=layer.bits,
        block_size=layer.block_size,
        accuracy_level=ACCURACY_LEVEL,
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", layer.in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", layer.out_features])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
