"""What ``bitimpl_signs``, ``bitimpl_image``, ``bitimpl_conv`` and ``bitimpl_cuda_conv_call`` are in C."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p

from kernel_library import Weight

SIGNS = 3
SIGNS_FIELDS = ("x_scale", "lower", "upper", "least", "most", "y_scale")


class SignsData(Structure):
    """``bitimpl_signs``."""

    _fields_ = [(name, c_void_p) for name in SIGNS_FIELDS]


class Image(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("samples", c_int64),
        ("channels", c_int64),
        ("size", c_int64 * 3),
        ("sample_stride", c_int64),
        ("channel_stride", c_int64),
        ("spatial_stride", c_int64 * 3),
    ]


class Conv(Structure):
    _fields_ = [
        ("groups", c_int64),
        *((name, c_int64 * 3) for name in ("kernel", "stride", "dilation", "before", "after")),
        ("padding_value", c_int32),
        ("reserved", c_int32),
    ]


class ConvCall(Structure):
    _fields_ = [
        ("weight", POINTER(Weight)),
        ("conv", POINTER(Conv)),
        ("x", Image),
        ("y", Image),
        ("bias", c_void_p),
        ("bias_dtype", c_int32),
        ("activation", c_int32),
        ("signs", POINTER(SignsData)),
        ("workspace", c_void_p),
        ("workspace_bytes", c_int64),
    ]
