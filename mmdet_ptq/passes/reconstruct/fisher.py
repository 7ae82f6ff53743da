# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weights of squared errors, from gradients at the output of a unit."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from ...calibration import Images, Sample, UnitView, gradients
from ...losses import GlobalLoss, GradientWeighted


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
    one = next(x for x in losses if isinstance(x, GradientWeighted))
    at = sum(isinstance(x, GlobalLoss) for x in losses)
    cache = images.cache
    kept: dict[int, Any] = {}
    squares: list[Tensor] = []
    count = 0
    for j, grads in gradients(
        images,
        view,
        run,
        lambda j, outputs: fisher[0](outputs, images.targets(j)[at]),
    ):
        squares += [g.double().square().sum() for g in grads]
        count += sum(g.numel() for g in grads)
        # all images' gradients may be more than the bound
        kept[j] = cache.keep(grads, exact=True)
    # looked at once: each look makes a GPU wait
    total = sum(torch.stack(squares).tolist()) if squares else 0.0
    sums = torch.tensor([total, float(count)], dtype=torch.float64)
    if get_world_size() > 1:
        all_reduce(sums)
    mean = float(sums[0] / sums[1]) if sums[1] else 0.0
    for j, entries in kept.items():
        weights = [one.weigh(g, mean) for g in cache.fetch(entries)]
        cache.drop(entries)
        samples[j].weights = cache.keep(weights)
