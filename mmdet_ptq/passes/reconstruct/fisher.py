# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weights of squared errors, from gradients at the output of a unit."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .capture import UnitView
from .samples import Images, Sample


def weigh(
    images: Images,
    view: UnitView,
    samples: dict[int, Sample],
    run: Callable[[int], Any],
    fisher: list[Any],
    losses: list[Any],
) -> None:
    """Sets ``Sample.weights`` of this rank's images.

    Args:
        images (Images): The images.
        view (UnitView): The unit.
        samples (dict[int, Sample]): What it does on each image.
        run (Callable): Runs image j as the losses want it.
        fisher (list): The losses to differentiate; the first counts. Their
            targets come after those of the losses on the detector's
            outputs.
        losses (list): All losses; the first that needs a gradient says
            what becomes of it.
    """
    one = next(x for x in losses if getattr(x, 'needs_gradient', False))
    at = sum(x.scope == 'global' for x in losses)
    cache = images.cache
    kept, squares, count = {}, [], 0
    for j, grads in gradients(
        images,
        view,
        run,
        lambda j, outputs: fisher[0](outputs, images.targets(j)[at]),
    ):
        squares += [float(g.double().square().sum()) for g in grads]
        count += sum(g.numel() for g in grads)
        # all images' gradients may be more than the bound
        kept[j] = cache.keep(grads, exact=True)
    sums = torch.tensor([sum(squares), float(count)], dtype=torch.float64)
    if get_world_size() > 1:
        all_reduce(sums)
    mean = float(sums[0] / sums[1]) if sums[1] else 0.0
    for j, entries in kept.items():
        weights = [one.weigh(g, mean) for g in cache.fetch(entries)]
        cache.drop(entries)
        samples[j].weights = cache.keep(weights)


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
