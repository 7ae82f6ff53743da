# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The projection of a positional encoding, apart from that of features."""

from torch import nn


class PositionLinear(nn.Linear):
    """A linear layer that is given a positional encoding and nothing else.

    It has a class of its own so that rules can tell it from the projection
    of the features (role ``@position``).
    """
