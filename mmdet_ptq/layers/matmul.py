# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A matrix product as a module, so that it can have a twin."""

from torch import Tensor, nn


class MatMul(nn.Module):
    """``a @ b``: (..., n, k) times (..., k, m)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the product, of shape (..., n, m)."""
        return a @ b
