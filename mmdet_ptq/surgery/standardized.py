# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Convolutions that standardise their weight, made plain ones.

The standardised weight is a constant once trained, so it is computed once
and the layer goes on as an ordinary convolution, which has a twin and into
which a following batch norm can be folded.
"""

import torch
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from torch import nn

from ..registry import DECOMPOSED
from .decompose import Decomposable


@DECOMPOSED.implements(ConvWS2d)
class PlainConvWS2d(Decomposable, ConvWS2d):
    """``ConvWS2d`` on its way to ``nn.Conv2d`` (Qiao et al., 2019)."""

    @torch.no_grad()
    def split(self) -> None:
        """Standardises the weight of each output channel."""
        rows = self.weight.flatten(1)
        rows = rows - rows.mean(1, keepdim=True)
        rows /= self.weight.flatten(1).std(1, keepdim=True) + self.eps
        # anew: another module may own the weight too
        self.weight = nn.Parameter(rows.view_as(self.weight))
        self.__class__ = nn.Conv2d


@DECOMPOSED.implements(ConvAWS2d)
class PlainConvAWS2d(Decomposable, ConvAWS2d):
    """``ConvAWS2d`` on its way to ``nn.Conv2d`` (DetectoRS, 2020)."""

    @torch.no_grad()
    def split(self) -> None:
        """Standardises and rescales the weight."""
        self.weight = nn.Parameter(self._get_weight(self.weight))
        self.__class__ = nn.Conv2d
