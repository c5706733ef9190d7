"""Where kernels fall, and weights as matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from impl.geometry import ConvGeometry, from_matrix, to_matrix

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def geometry(kernel, padding, stride=1, dilation=1, **rest):
    dims = len(kernel)
    return ConvGeometry(kernel, (stride,) * dims, padding, (dilation,) * dims, **rest)


@pytest.mark.parametrize(
    ("place", "size"),
    [
        (geometry((3,), ((1, 1),)), (7,)),
        (geometry((2, 5), ((0, 3), (2, 1)), stride=2), (8, 9)),
        (geometry((3, 1, 2), ((1, 0),) * 3, stride=3, dilation=2), (7, 5, 6)),
    ],
)
def test_output_sizes_are_those_of_torch(place, size):
    padded = F.pad(torch.zeros(1, 1, *size), place.torch_padding())
    weight = torch.zeros(1, 1, *place.kernel)
    y = CONVOLUTIONS[place.dims](padded, weight, stride=place.stride, dilation=place.dilation)
    assert place.output_size(size) == tuple(y.shape[2:])
    assert place.taps == weight.numel()


def test_padding_lies_before_and_after_its_own_dimension():
    place = geometry((1, 1), ((1, 2), (3, 0)))
    assert place.pads
    assert F.pad(torch.ones(1, 1, 1, 1), place.torch_padding())[0, 0].tolist() == [
        [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0],
    ]  # fmt: skip
    assert not geometry((3, 3), ((0, 0), (0, 0))).pads


def test_the_matrix_of_a_weight_has_taps_outermost_and_channels_innermost():
    weight = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    matrix = to_matrix(weight)
    assert matrix.shape == (2, 12)
    assert matrix[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    place = geometry((2, 2), ((0, 0), (0, 0)))
    assert torch.equal(from_matrix(matrix, place), weight)
    both = torch.stack([matrix, -matrix])
    assert torch.equal(from_matrix(both, place), torch.stack([weight, -weight]))
    assert from_matrix(both, place).is_contiguous()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: geometry((), ()), ValueError, "1 to 3 spatial dimensions"),
        (lambda: geometry((1,) * 4, ((0, 0),) * 4), ValueError, "1 to 3 spatial dimensions"),
        (lambda: ConvGeometry((3, 3), (1,), ((0, 0),) * 2, (1, 1)), ValueError, r"stride \(1,\)"),
        (lambda: geometry([3], ((0, 0),)), TypeError, r"kernel must be a tuple, got \[3\]"),
        (lambda: geometry((3,), ([0, 0],)), TypeError, "padding must be a tuple of pairs"),
        (lambda: geometry((3,), (1,)), TypeError, "padding must be a tuple of pairs"),
        (lambda: geometry((0,), ((0, 0),)), ValueError, "kernel must be at least 1, got 0"),
        (lambda: geometry((3,), ((0, 0),), stride=0), ValueError, "stride must be at least 1"),
        (lambda: geometry((3,), ((0, -1),)), ValueError, "padding must not be negative"),
        (lambda: geometry((3,), ((0, 0),), groups=0), ValueError, "groups must be at least 1"),
        (lambda: geometry((3,), ((1, 1),), padding_value=2), ValueError, "padding_value must be -1, 0 or"),
        (lambda: geometry((3,), ((0, 1),)).output_size((1,)), ValueError, "2 long in spatial dimension 0"),
        (lambda: geometry((3,), ((0, 1),)).output_size((1, 2)), ValueError, "2 spatial dimensions"),
    ],
)
def test_what_no_convolution_has_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
