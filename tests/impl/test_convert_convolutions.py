"""Convolutions of whole models, and both kinds of layers packed and unpacked together."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from impl import BitLinear, ConversionReport, convert_linear_to_bitlinear, pack, prepare, unpack
from impl.convert import convert_convolutions
from impl.layers.binary_conv import BinaryConv, BinaryConv2d
from impl.layers.conv import QuantizedConv
from impl.layers.k_ternary_conv import MultiTernaryConv
from impl.layers.ternary_conv import TernaryConv, TernaryConv2d


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


IMAGES = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def kinds(model, of=(nn.Conv2d, QuantizedConv, nn.Linear, BitLinear)):
    return {name: type(m) for name, m in model.named_modules() if isinstance(m, of)}


@pytest.mark.parametrize("layer", [BinaryConv, TernaryConv, MultiTernaryConv])
def test_converts_every_convolution_and_nothing_else(layer):
    model = network()
    original = copy.deepcopy(model)
    converted = convert_convolutions(model, layer=layer, activation_bits=8)
    assert converted is model
    names = {"0", "2.0", "2.2"}
    for name, kind in kinds(model).items():
        assert (kind is nn.Linear) == (name not in names)
    for name in names:
        new, old = model.get_submodule(name), original.get_submodule(name)
        assert isinstance(new, layer)
        assert new.is_packed
        assert new.activation_bits == 8
        assert (new.groups, new.padding) == (old.groups, old.padding)
        correlation = torch.corrcoef(torch.stack([new.dequantize().flatten(), old.weight.flatten()]))[0, 1]
        assert correlation > 0.7
    assert model(IMAGES).shape == (2, 5)


def test_all_numbers_of_dimensions_are_converted_by_one_class():
    model = nn.Sequential(nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv3d(2, 2, 3))
    convert_convolutions(model, layer=BinaryConv)
    assert [type(m).__name__ for m in model] == ["BinaryConv1d", "BinaryConv2d", "BinaryConv3d"]
    root = convert_convolutions(nn.Conv1d(2, 2, 3))
    assert type(root).__name__ == "TernaryConv1d"


def test_linear_conversion_leaves_convolutions_alone():
    model = network()
    convert_linear_to_bitlinear(model)
    assert set(kinds(model).values()) == {nn.Conv2d, BitLinear}


def test_skip_inplace_and_report():
    model = network()
    report = ConversionReport()
    converted = convert_convolutions(model, inplace=False, skip=["0", "*.2"], report=report)
    assert set(kinds(model).values()) == {nn.Conv2d, nn.Linear}
    assert report.converted == ["2.0"]
    assert set(report.skipped) == {"0", "2.2"}
    assert kinds(converted)["2.0"] is TernaryConv2d
    with pytest.raises(ValueError, match=r"skip names 'stem', which match no module; convolutions are '0'"):
        convert_convolutions(model, skip=["stem"])


def test_what_cannot_be_converted_is_left_alone_and_reported():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), Own(4, 4, 3), nn.ConvTranspose2d(4, 4, 3),
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3),
    )  # fmt: skip
    model[3].register_forward_hook(lambda module, args, output: output)
    with pytest.warns(UserWarning, match="convolutions left unconverted") as caught:
        convert_convolutions(model)
    text = str(caught[0].message)
    assert caught[0].filename == __file__
    for part in ("0: it pads by 'circular'", "1: Own is a subclass of nn.Conv2d", "3: it has hooks"):
        assert part in text
    assert type(model[4]) is TernaryConv2d
    assert type(model[2]) is nn.ConvTranspose2d


def test_wrong_arguments_are_refused_and_nothing_is_replaced():
    model = network()
    model[2][2].weight.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"^2\.2: weight holds 8 NaN or infinite"):
        convert_convolutions(model)
    with pytest.raises(TypeError, match=r"layer must be a class such as impl\.TernaryConv"):
        convert_convolutions(model, layer=BitLinear)
    with pytest.raises(TypeError, match=r"^0: .*unexpected keyword argument 'group_size'"):
        convert_convolutions(model, group_size=8)
    with pytest.raises(TypeError, match=r"^0: BinaryConv1d\.from_conv takes an nn\.Conv1d"):
        convert_convolutions(model, layer=BinaryConv.by_dims[1])
    assert set(kinds(model).values()) == {nn.Conv2d, nn.Linear}


def test_tied_convolutions_stay_tied():
    def tied(**second):
        model = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False, **second))
        model[1].weight = model[0].weight
        return model

    same = convert_convolutions(tied())
    assert same[0] is same[1]
    # Alike but for their places: one weight, two modules.
    strided = convert_convolutions(tied(stride=2))
    assert strided[0] is not strided[1]
    assert strided[0].codes is strided[1].codes
    assert (strided[0].stride, strided[1].stride) == ((1, 1), (2, 2))
    latent = convert_convolutions(tied(stride=2), pack=False)
    assert latent[0].weight is latent[1].weight
    pack(latent)
    assert latent[0].codes is latent[1].codes


def test_train_pack_unpack_of_both_kinds_together():
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"skip": ["0"], "layer": BinaryConv, "activation_bits": 1, "padding_value": -1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = prepare(convert_convolutions(model, pack=False, **options), rule="twn")
    assert kinds(model) == {"0": nn.Conv2d, "2.0": BinaryConv2d, "2.2": BinaryConv2d, "5": BitLinear}
    # An optimizer built before keeps working: the Parameters are the same objects.
    assert all(p is parameters[name] for name, p in model.named_parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(IMAGES).logsumexp(-1).sum().backward()
    optimizer.step()
    for name in ("2.0.weight", "2.2.weight", "5.weight"):
        assert not torch.equal(parameters[name], before[name])
    model.eval()
    with torch.no_grad():
        expected = model(IMAGES)
        pack(model)
        assert model[2][0].is_packed
        assert model[5].is_packed
        torch.testing.assert_close(model(IMAGES), expected, rtol=1e-4, atol=1e-4)
        unpack(model)
        assert dict(model.named_parameters()).keys() == parameters.keys()
        torch.testing.assert_close(model(IMAGES), expected, rtol=1e-3, atol=1e-3)
