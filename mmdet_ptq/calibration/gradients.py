# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Gradients of a loss at the output of a unit."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .samples import Images
from .units import UnitView


def gradients(
    images: Images,
    view: UnitView,
    run: Callable[[int], Any],
    loss: Callable[[int, Any], Tensor],
) -> Iterator[tuple[int, list[Tensor]]]:
    """Gradients of a loss at the outputs of a unit, image after image.

    Args:
        images (Images): The images.
        view (UnitView): The unit.
        run (Callable): Runs image j as the loss wants it.
        loss (Callable): Loss of image and outputs.

    Yields:
        tuple[int, list[Tensor]]: Number of the image, and the gradients of
        each call and output; zero where the loss does not depend on it.
    """
    for j in images.mine:
        leaves: list[list[Tensor]] = []

        def mark(_: int, __: Any, output: Any, leaves: list = leaves) -> Any:
            return _with_leaves(output, leaves)

        with torch.enable_grad(), view.watching(mark):
            value = loss(j, run(j))
        grads: Any = [None] * len(leaves)
        if value.requires_grad and leaves:
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
        yield (
            j,
            [
                torch.zeros_like(t) if g is None else g
                for t, g in zip(leaves, grads, strict=True)
            ],
        )


def _with_leaves(output: Any, leaves: list[Tensor]) -> Any:
    """Cuts the graph at floating tensors and notes the new leaves."""

    def cut(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        leaves.append(t.detach().requires_grad_())
        return leaves[-1].clone()  # what follows may work in place

    return tree_map_only(Tensor, cut, output)
