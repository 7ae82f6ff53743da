# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantized twins of convolution and linear layers."""

from types import MappingProxyType
from typing import Any

import mmcv.ops
import torch
from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn

from ..context import current
from ..registry import QUANT_LAYERS
from .base import QuantLayer
from .integer_softmax import integer_softmax
from .matmul import MatMul
from .norm import InputLayerNorm
from .position import PositionLinear

#: rows of what has its channels last
LAST = MappingProxyType({'input': -1})


@QUANT_LAYERS.implements(nn.Conv2d)
class QuantConv2d(QuantLayer, nn.Conv2d):
    """Conv2d of any stride, padding, dilation and number of groups."""

    has_groups = True


@QUANT_LAYERS.implements(wrappers.Conv2d)
class QuantMMCVConv2d(QuantLayer, wrappers.Conv2d):
    """MMCV's Conv2d, which also takes empty batches."""

    has_groups = True


@QUANT_LAYERS.implements(nn.ConvTranspose2d)
class QuantConvTranspose2d(QuantLayer, nn.ConvTranspose2d):
    """ConvTranspose2d: its weight is (in, out / groups, kH, kW)."""

    weight_axis = 1
    has_groups = True


@QUANT_LAYERS.implements(wrappers.ConvTranspose2d)
class QuantMMCVConvTranspose2d(QuantLayer, wrappers.ConvTranspose2d):
    """MMCV's ConvTranspose2d, which also takes empty batches."""

    weight_axis = 1
    has_groups = True


@QUANT_LAYERS.implements(nn.Linear)
class QuantLinear(QuantLayer, nn.Linear):
    """Linear on inputs of shape (..., in_features)."""

    act_axis = -1
    row_axes = LAST


@QUANT_LAYERS.implements(PositionLinear)
class QuantPositionLinear(QuantLayer, PositionLinear):
    """Linear on positional encodings."""

    act_axis = -1
    row_axes = LAST


@QUANT_LAYERS.implements(wrappers.Linear)
class QuantMMCVLinear(QuantLayer, wrappers.Linear):
    """MMCV's Linear, which also takes empty batches."""

    act_axis = -1
    row_axes = LAST


@QUANT_LAYERS.implements(InputLayerNorm)
class QuantLayerNorm(QuantLayer, InputLayerNorm):
    """Layer norm of a quantized input; its weight and bias are float."""

    weight_axis = None
    act_axis = -1
    row_axes = LAST


@QUANT_LAYERS.implements(MatMul)
class QuantMatMul(QuantLayer, MatMul):
    """Product of two activations, each with a quantizer of its own.

    Its channels are the heads: each is a product of its own, so its scales
    need not be those of the others.

    Attributes:
        numerator (str): ``''``, or by what the product is divided whose
            first operand is scaled so that the maximum of each row is 1: of
            a softmax, that is its numerator. ``'float'``: what undoes the
            scaling; ``'quantized'``: what gives the row, once quantized, the
            sum that it had.
        softmax_steps (int): Steps of an octave of the logits, where the
            first operand is a softmax whose quantized form is made by
            :func:`integer_softmax`; else 0.
        softmax_sums (bool): Whether that product is divided by the sums of
            the quantized rows.
    """

    ports = ('a', 'b')
    weight_axis = None
    act_axis = 1
    row_axes = MappingProxyType({'a': -1, 'b': -2})
    numerator = ''
    softmax_steps = 0
    softmax_sums = False

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the product, of shape (..., n, m)."""
        if self.softmax_steps and self._quantizes_first():
            return self._whole(integer_softmax(a, self.softmax_steps), b)
        if not self.numerator:
            return super().forward(a, b)
        peak = _not_zero(a.amax(-1, keepdim=True))
        rows = a / peak
        product = super().forward(rows, b) * peak
        if self.numerator == 'float' or not self._quantizes_first():
            return product
        return product * (rows.sum(-1, keepdim=True) / self._sums(rows))

    def _whole(self, a: Tensor, b: Tensor) -> Tensor:
        product = super().forward(a, b)
        return product / self._sums(a) if self.softmax_sums else product

    def _sums(self, rows: Tensor) -> Tensor:
        """Of the first operand of the latest call, quantized."""
        quantizer = self._modules['act_quantizers']._modules['a']
        level = current().last_level(self.call_key, self.levels)
        return _not_zero(quantizer(rows, level).sum(-1, keepdim=True))

    def _quantizes_first(self) -> bool:
        quantizers = self._modules['act_quantizers']._modules
        return self.quantize_act and quantizers.get('a') is not None


@QUANT_LAYERS.implements(mmcv.ops.DeformConv2d)
class QuantDeformConv2d(QuantLayer, mmcv.ops.DeformConv2d):
    """Deformable convolution; the offsets it is given stay float."""

    has_groups = True


@QUANT_LAYERS.implements(mmcv.ops.ModulatedDeformConv2d)
class QuantModulatedDeformConv2d(QuantLayer, mmcv.ops.ModulatedDeformConv2d):
    """Modulated deformable convolution; offsets and masks stay float."""

    has_groups = True


class _OffsetsFromFloat(QuantLayer):
    """Twin of a pack: its offset branch reads the float input."""

    has_groups = True

    def float_branches(self, *args: Any) -> dict[str, Any]:
        """See :meth:`QuantLayer.float_branches`: what gives the offsets."""
        offsets = self.conv_offset(args[0])
        return {'conv_offset': lambda _: offsets}


@QUANT_LAYERS.implements(mmcv.ops.DeformConv2dPack)
class QuantDeformConv2dPack(_OffsetsFromFloat, mmcv.ops.DeformConv2dPack):
    """Deformable convolution with its own, float, offset branch."""


@QUANT_LAYERS.implements(mmcv.ops.ModulatedDeformConv2dPack)
class QuantModulatedDeformConv2dPack(
    _OffsetsFromFloat, mmcv.ops.ModulatedDeformConv2dPack
):
    """Modulated deformable convolution with its own offset branch."""


def is_leaf(module: Any) -> bool:
    """Whether the module is quantizable as a whole (or already a twin).

    A weight that a hook sets in every forward cannot be quantized.
    """
    twin = QUANT_LAYERS.get(type(module))
    if twin is None:
        return isinstance(module, QuantLayer)
    return twin.weight_axis is None or 'weight' in module._parameters


def twin_class(module: nn.Module) -> type[QuantLayer]:
    """The class of a twin, or that which a leaf layer will have."""
    kind = type(module)
    return kind if issubclass(kind, QuantLayer) else QUANT_LAYERS.get(kind)


def ports_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the quantizable inputs of a leaf layer."""
    return twin_class(module).ports


def _not_zero(divisor: Tensor) -> Tensor:
    """What rows are divided by, so that a row of zeros alone stays one."""
    return torch.where(divisor > 0, divisor, 1.0)
