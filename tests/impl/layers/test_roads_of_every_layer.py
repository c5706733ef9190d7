"""Every public layer, in each of its forms, lives as a module of torch does.

The layers and their inputs are in ``every_layer.py``; what only some layers do is in their own tests.
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from impl.layers import QuantizedLinear

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.bfloat16, torch.float16]


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def saved_buffers(module):
    """What the state holds besides parameters: the packed weights."""
    return {name: tensor for name, tensor in module.named_buffers() if name in module.state_dict()}


def same(every_layer, one, other, x):
    with torch.no_grad():
        pairs = zip(every_layer.outputs(one, x), every_layer.outputs(other, x), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


def close(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)


def test_every_layer_has_a_case(every_layer):
    covered = {every_layer.family(type(case.build(device="meta"))) for case in every_layer.CASES}
    missing = every_layer.public_layers() - covered
    assert not missing, f"add them to every_layer.py: {sorted(cls.__name__ for cls in missing)}"


def test_copies_are_equal_and_independent(every_layer, layer_case, packed, copied):
    layer, x = layer_case.build(packed), layer_case.inputs()
    layer(x)  # what a call leaves behind must not travel
    twin = copied(layer)
    assert same(every_layer, layer, twin, x)
    own = {tensor.data_ptr() for tensor in tensors(layer)} - {0}  # 0: integers behind a float surface
    assert not own & {tensor.data_ptr() for tensor in tensors(twin)}
    assert [form.is_packed for form in every_layer.two_forms(twin)] == [
        form.is_packed for form in every_layer.two_forms(layer)
    ]


def test_states_travel_through_torch_save_with_weights_only(every_layer, layer_case, packed):
    layer, x = layer_case.build(packed), layer_case.inputs()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin = layer_case.build()
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert same(every_layer, layer, twin, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision(every_layer, layer_case, packed, dtype):
    """``.half()`` and ``.to(bfloat16)``: the module runs, its outputs have the dtype and the values of
    the float32 module that holds the same numbers, and packed bytes and scales stay as they are."""
    layer, x = layer_case.build(packed), layer_case.inputs(dtype)
    before = {name: tensor.clone() for name, tensor in saved_buffers(layer).items()}
    assert bool(before) is packed
    layer = layer.half() if dtype == torch.float16 else layer.to(dtype)
    assert all(p.dtype == dtype for p in layer.parameters())
    for name, tensor in saved_buffers(layer).items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    y = every_layer.outputs(layer, x)
    assert all(part.dtype == dtype for part in y)
    reference = copy.deepcopy(layer).float()
    close(y, every_layer.outputs(reference, x.float() if x.is_floating_point() else x), 2e-2)
    found = every_layer.gradients(layer, x)
    assert all(gradient.dtype == dtype for gradient in found.values())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values())


def test_autocast(every_layer, layer_case, packed):
    layer, x = layer_case.build(packed), layer_case.inputs()
    if x.is_floating_point():
        # As autocast rounds it: a value may else cross the threshold of ternary activations.
        x = x.to(torch.bfloat16).to(x.dtype)
    expected = every_layer.outputs(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        y, found = every_layer.run(layer, x, layer)
        with torch.no_grad():
            inference = every_layer.outputs(layer, x)
    close(y, expected, 5e-2)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(inference, y, strict=True))
    if isinstance(layer, QuantizedLinear):
        assert y[0].dtype == torch.bfloat16  # as nn.Linear's
    assert found.keys() == every_layer.gradients(layer, x).keys()
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_compiles_into_one_graph(every_layer, layer_case, packed):
    torch._dynamo.reset()
    layer, x = layer_case.build(packed), layer_case.inputs()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    outputs, expected = every_layer.run(layer, x, layer)
    compiled_outputs, found = every_layer.run(compiled, x, layer)
    close(compiled_outputs, outputs, 1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


def test_exports_with_any_batch_size(every_layer, layer_case, packed):
    layer, x = layer_case.build(packed).eval(), layer_case.inputs()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    more = torch.cat([x, layer_case.inputs(seed=4)])
    for inputs in (x, more):
        close(every_layer.outputs(program.module(), inputs), every_layer.outputs(layer, inputs), 1e-5)


def test_meta_construction_and_materialisation(every_layer, layer_case, packed):
    real, x = layer_case.build(packed), layer_case.inputs()
    with torch.device("meta"):
        layer = layer_case.build(packed)
    assert all(tensor.is_meta for tensor in tensors(layer))
    for a, b in zip(every_layer.outputs(layer, x.to("meta")), every_layer.outputs(real, x), strict=True):
        assert a.is_meta
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    filled = copy.deepcopy(layer).to_empty(device="cpu")
    filled.load_state_dict(real.state_dict())
    layer.load_state_dict(real.state_dict(), assign=True)
    for twin in (filled, layer):
        assert not any(tensor.is_meta for tensor in tensors(twin))
        assert same(every_layer, twin, real, x)
    assert all(tensor.is_meta for tensor in tensors(real.to("meta")))


def test_device_and_dtype_arguments_are_followed(layer_case):
    """D15: the device given was stored and not used."""
    layer = layer_case.build(device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in layer.parameters())


def test_inference_mode_leaves_the_layer_trainable(every_layer, layer_case, packed):
    layer, x = layer_case.build(packed), layer_case.inputs()
    expected = every_layer.gradients(layer, x)
    with torch.inference_mode():
        inside = every_layer.outputs(layer, x)
    close(inside, every_layer.outputs(layer, x), 1e-6)
    found = every_layer.gradients(layer, x)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_the_input_and_its_gradient_may_have_any_strides(every_layer, layer_case, packed):
    layer, x = layer_case.build(packed), layer_case.inputs()
    strided = torch.stack([x, x], dim=-1)[..., 1].transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert same(every_layer, layer, layer, strided)
    close(every_layer.outputs(layer, strided), every_layer.outputs(layer, x), 1e-6)
    expected = every_layer.gradients(layer, x)
    found = every_layer.gradients(layer, strided)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
