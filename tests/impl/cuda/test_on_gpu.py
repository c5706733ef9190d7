"""Layers on a GPU: streams, graphs, several devices, compiled code, and what an emulator cannot show."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from emulated import FOR_HOPPER
from torch import Tensor, nn

import impl
from impl import decoding, functional, native, packing
from impl.native.cuda import devices, self_check
from impl.native.library import NativeError

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and not native.cuda.available(),
        reason="the CUDA kernels were not built: run CMake with BITIMPL_CUDA=auto or on",
    ),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device; this needs two")

Make = Callable[[], nn.Module]
LAYERS: dict[str, Make] = {
    "int8": lambda: impl.BitLinear(1000, 520, activation_bits=8),
    "int8-two_bit": lambda: impl.BitLinear(1024, 512, activation_bits=8, format="two_bit"),
    "int16": lambda: impl.BitLinear(300, 77, activation_bits=16, bias=False),
    "sign": lambda: impl.BitLinear(300, 77, activation_bits=1),
    "ternary": lambda: impl.BitLinear(300, 77, activation_bits=2),
    "k2": lambda: impl.MultiTernaryLinear(640, 256, k=2, activation_bits=8),
    "k3-g64": lambda: impl.MultiTernaryLinear(640, 256, k=3, group_size=64, activation_bits=8),
    "float": lambda: impl.BitLinear(640, 256),
    "w1a1": lambda: impl.BinaryLinear(1024, 520, activation_bits=1),
    "w1a1-tails": lambda: impl.BinaryLinear(300, 77, activation_bits=1, bias=False),
    "w1a8": lambda: impl.BinaryLinear(640, 256, activation_bits=8),
    "binary-float": lambda: impl.BinaryLinear(300, 77),
}


@pytest.fixture(autouse=True)
def served() -> Iterator[None]:
    """An explicit choice: a test that the torch reference served would prove nothing."""
    torch.manual_seed(0)
    with native.backend("native"):
        assert native.uses_native(torch.device("cuda", 0))
        yield


@pytest.fixture
def gpu_layer() -> nn.Module:
    layer: nn.Module = impl.BitLinear(1024, 768, activation_bits=8).pack().cuda()
    return layer


def reference(layer: nn.Module, x: Tensor) -> Tensor:
    """On the CPU, by torch alone."""
    alone = copy.deepcopy(layer).cpu()
    bias = None if alone.bias is None else alone.bias.detach()
    operator = getattr(functional, f"{native.operator_of(alone.format)}_python")
    y: Tensor = operator(x.detach().cpu(), alone.packed_weight, bias, alone.activation_bits)
    return y


def assert_as_reference(layer: nn.Module, x: Tensor, y: Tensor) -> None:
    expected = reference(layer, x)
    if layer.activation_bits is not None and layer.group_size is None:
        assert torch.equal(y.cpu(), expected)
        return
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}[x.dtype]
    size = expected.float().abs().max().item()
    torch.testing.assert_close(y.float().cpu(), expected.float(), rtol=tolerance, atol=tolerance * size)


def exact(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Short binary fractions: sums of them are the same in every order."""
    return (torch.randint(-256, 257, shape) / 64).to(dtype).cuda()


@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_results_are_those_of_the_reference(kind: str, dtype: torch.dtype) -> None:
    layer = LAYERS[kind]().pack().cuda()
    for tokens in (1, 2, 3, 7, 8, 9, 16, 31, 64, 65, 129, 300):
        x = exact(tokens, layer.in_features, dtype=dtype)
        with torch.no_grad():
            y = layer(x)
        assert y.device == x.device
        assert y.dtype == dtype
        assert_as_reference(layer, x, y)
        major, minor = torch.cuda.get_device_capability()
        assert layer.last_kernel.endswith(f"/sm_{major}{minor}"), layer.last_kernel


def test_strides_empty_batches_and_leading_dimensions(gpu_layer: nn.Module) -> None:
    for x in (exact(4, 3, 2048)[..., ::2], exact(5, 2048)[:, 3:1027], exact(1, 1024).expand(6, 1024)):
        y = gpu_layer(x)
        assert y.shape == (*x.shape[:-1], 768)
        assert_as_reference(gpu_layer, x.contiguous(), y.detach())
    assert gpu_layer(exact(0, 1024)).shape == (0, 768)


def test_the_self_check_passes_in_a_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = native.cuda.require()
    began = time.monotonic()
    assert self_check.check(library, 0) == {}
    assert time.monotonic() - began < 10
    devices.forget()
    assert native.cuda.why_not(0, "linear", "base3") == ""
    assert list((tmp_path / "bitimpl").glob("self-check-*.json"))
    assert impl.capabilities().cuda.devices[0].self_check == "passed"


@pytest.mark.parametrize("kind", LAYERS)
def test_a_captured_graph_replays_with_new_input(kind: str) -> None:
    layer = LAYERS[kind]().pack().cuda().eval()
    for tokens in (1, 40, 200):
        x = exact(tokens, layer.in_features)
        with torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                layer(x)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = layer(x)
            for _ in range(3):
                x.copy_(exact(tokens, layer.in_features))
                y.fill_(float("nan"))
                graph.replay()
                torch.cuda.synchronize()
                assert_as_reference(layer, x, y)


def test_calls_go_into_the_current_stream(gpu_layer: nn.Module) -> None:
    """The input is written late in the stream: who does not wait for it reads something else."""
    x, late = torch.zeros(3, 1024, device="cuda"), exact(3, 1024)
    stream = torch.cuda.Stream()
    with torch.no_grad():
        gpu_layer(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            x.copy_(late)
            y = gpu_layer(x)
            x.zero_()
        assert not stream.query(), "the call waited for the device"
        stream.synchronize()
    assert_as_reference(gpu_layer, late, y)


def test_calls_neither_wait_nor_keep_memory(gpu_layer: nn.Module) -> None:
    x = exact(33, 1024)
    with torch.no_grad():
        gpu_layer(x)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            y = gpu_layer(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        del y
        assert torch.cuda.memory_allocated() == before


def test_threads_with_streams_of_their_own(gpu_layer: nn.Module) -> None:
    inputs = [exact(tokens, 1024) for tokens in (1, 5, 40, 100)]
    torch.cuda.synchronize()
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                y = gpu_layer(inputs[number])
            torch.cuda.current_stream().synchronize()
            found[number] = y

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, x in enumerate(inputs):
        assert_as_reference(gpu_layer, x, found[number])


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_layers(gpu_layer: nn.Module, mode: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(gpu_layer, fullgraph=True, mode=mode)
    with torch.no_grad():
        for _ in range(4):
            x = exact(5, 1024)
            torch.compiler.cudagraph_mark_step_begin()
            y = compiled(x).clone()
            assert_as_reference(gpu_layer, x, y)


def test_autocast_and_gradients(gpu_layer: nn.Module) -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert gpu_layer(exact(2, 1024)).dtype == torch.bfloat16
    twin = copy.deepcopy(gpu_layer).cpu()
    x = exact(6, 1024).requires_grad_()
    y = gpu_layer(x)
    y.square().sum().backward()
    there = x.detach().cpu().requires_grad_()
    twin(there).square().sum().backward()
    assert x.grad is not None
    assert there.grad is not None
    size = there.grad.abs().max().item()
    torch.testing.assert_close(x.grad.cpu(), there.grad, rtol=1e-3, atol=1e-4 * size)
    torch.testing.assert_close(gpu_layer.bias.grad.cpu(), twin.bias.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("format", ["binary", "two_bit", "base3"])
@pytest.mark.parametrize("group_size", [None, 24])
def test_packing_on_the_device_gives_the_same_bytes(format: str, group_size: int | None) -> None:
    codes = torch.randint(0, 2, (2, 203, 331), dtype=torch.int8) * 2 - 1
    if format != "binary":
        codes[:, ::2, 1::3] = 0
    with native.backend("native"):
        packed = packing.pack(codes.cuda(), format, group_size)
        assert packed.is_cuda
        assert torch.equal(packed.cpu(), packing.pack(codes, format, group_size))
        assert torch.equal(packing.unpack(packed, format, 2, 203, 331, group_size).cpu(), codes)
    with pytest.raises(ValueError, match="codes must lie"):
        packing.pack(codes.cuda() * 3, format, group_size)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_packed_on_the_device_moves_back_and_forth(kind: str) -> None:
    latent = LAYERS[kind]()
    there, here = copy.deepcopy(latent).cuda().pack(), copy.deepcopy(latent).pack()
    assert torch.equal(there.codes.cpu(), here.codes)
    torch.testing.assert_close(there.scales.cpu(), here.scales, rtol=1e-6, atol=0)
    here.load_state_dict(there.state_dict())
    back = copy.deepcopy(there).cpu()
    for name, tensor in here.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    decoded = decoding.dequantize_rows(there.packed_weight, 20, 61)
    assert torch.equal(decoded.cpu(), decoding.dequantize_rows(back.packed_weight, 20, 61))
    x = exact(3, latent.in_features)
    with torch.no_grad():
        before = there(x)
        assert torch.equal(there.cpu().cuda()(x), before)


def test_mixed_devices_are_an_error(gpu_layer: nn.Module) -> None:
    with pytest.raises(ValueError, match="the input is on cpu, the packed weight on cuda:0"):
        gpu_layer(torch.ones(1, 1024))
    with pytest.raises(ValueError, match="the input is on cuda:0, the packed weight on cpu"):
        copy.deepcopy(gpu_layer).cpu()(exact(1, 1024))
    gpu_layer.bias = nn.Parameter(torch.zeros(768))
    with pytest.raises(ValueError, match="the bias is on cpu, the packed weight on cuda:0"):
        gpu_layer(exact(1, 1024))


def test_results_with_more_values_than_32_bits_count() -> None:
    layer = impl.BitLinear(64, 65536, bias=False, activation_bits=8).pack().cuda()
    tokens = (1 << 31) // 65536 + 200
    free, _ = torch.cuda.mem_get_info()
    if free < 2.5 * 2 * tokens * 65536:
        pytest.skip(f"{free >> 30} GiB of GPU memory are free; this needs {5 * tokens * 65536 >> 30}")
    x = exact(tokens, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        y = layer(x)
    at = torch.tensor([0, 1, tokens // 2, tokens - 200, tokens - 1])
    assert_as_reference(layer, x[at.cuda()], y[at.cuda()])


def test_every_kernel_that_was_compiled_serves_by_name() -> None:
    library = native.cuda.require()
    layers = [LAYERS[kind]().pack().cuda() for kind in ("int8-two_bit", "float", "w1a1")]
    try:
        for name in library.kernels:
            if name in library.unproven:
                with pytest.raises(NativeError, match="BITIMPL_UNPROVEN=1"):
                    native.cuda.select_kernel(name)
                continue
            native.cuda.select_kernel(name)
            served = 0
            for layer, tokens in itertools.product(layers, (1, 4, 32, 256)):
                x = exact(tokens, layer.in_features)
                with torch.no_grad(), contextlib.suppress(NativeError):  # not every kernel takes as many
                    y = layer(x)
                    assert_as_reference(layer, x, y)
                    assert layer.last_kernel.split("/")[3] == name
                    served += 1
            assert served or (name in FOR_HOPPER and torch.cuda.get_device_capability() != (9, 0))
    finally:
        native.cuda.select_kernel(None)


def test_results_repeat_to_the_bit() -> None:
    layer = LAYERS["k3-g64"]().pack().cuda()
    for tokens in (1, 24, 150):
        x = torch.randn(tokens, 640, device="cuda")
        with torch.no_grad():
            first = layer(x)
            assert all(torch.equal(layer(x), first) for _ in range(20))


@needs_two
def test_layers_on_two_devices(gpu_layer: nn.Module) -> None:
    other = copy.deepcopy(gpu_layer).to("cuda:1")
    x = exact(9, 1024)
    with torch.no_grad():
        y = other(x.to("cuda:1"))  # cuda:0 is the current device
        assert y.device == torch.device("cuda:1")
        assert_as_reference(gpu_layer, x, y)
        assert torch.cuda.current_device() == 0
        with torch.cuda.device(1):
            assert_as_reference(gpu_layer, x, gpu_layer(x))
            assert torch.cuda.current_device() == 1
    with pytest.raises(ValueError, match="the input is on cuda:0, the packed weight on cuda:1"):
        other(x)
