# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A norm whose input can be quantized."""

from torch import nn


class InputLayerNorm(nn.LayerNorm):
    """A layer norm whose input can be quantized; the same in all else.

    Norms stay float where no rule names them. A norm that one names becomes
    this class before the survey, and only this class has a twin.
    """
