"""The operators as ``torch.ops.bitimpl``: schemas, fakes, dispatch and autograd.

``binary_linear``, ``ternary_linear``, ``binary_conv`` and ``ternary_conv`` apply a packed weight and
add a bias; ``linear_input_grad`` and ``conv_input_grad`` are their gradients towards the input;
:mod:`impl.ops.int8_training` has those of training with int8 products. They serve autograd,
``torch.compile`` and export; eager calls of layers go past them.

Importing this package registers the operators, once.
"""

from impl.ops.conv import ConvFunction
from impl.ops.int8_training import Int8TrainingFunction
from impl.ops.library import ACTIVATIONS
from impl.ops.linear import PreparedFunction, check_input

__all__ = [
    "ACTIVATIONS",
    "ConvFunction",
    "Int8TrainingFunction",
    "PreparedFunction",
    "check_input",
]
