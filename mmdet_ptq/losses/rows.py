# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the global losses share: choice of rows, divergences, raw L2."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import whole
from ..structures import DetectionOutputs
from .base import Target


def is_mask(output: DetectionOutputs) -> bool:
    """Whether columns are pixels of a mask, in place of classes."""
    return 'mask_head' in output.name


def check_limit(value: int | None) -> int | None:
    """Returns ``topk_per_level`` if it is None or a positive int.

    Raises:
        ValueError: If it is neither.
    """
    if value is None:
        return None
    return whole('topk_per_level (None: all rows)', value, 1)


def confidence(output: DetectionOutputs) -> tuple[Tensor, Tensor]:
    """Probability and index of the likeliest foreground class.

    Args:
        output (DetectionOutputs): N rows.

    Returns:
        tuple[Tensor, Tensor]: Shapes (N, ). The index counts foreground
        classes, as the K boxes of class-aware heads do.
    """
    if output.activation == 'sigmoid':
        probability = output.logits.sigmoid()
    else:
        probability = output.logits.softmax(dim=1)
    if output.background is not None:
        device = probability.device
        classes = torch.arange(probability.shape[1], device=device)
        probability = probability[:, classes != output.background]
    return probability.max(dim=1)


def surest_rows(
    scores: Tensor, levels: Tensor | None, limit: int | None
) -> Tensor:
    """Rows of highest confidence, at most so many of a level.

    Args:
        scores (Tensor): Shape (N, ).
        levels (Tensor, optional): Level of each row, None for one level.
        limit (int, optional): Rows kept of a level, None for all.

    Returns:
        Tensor: int64, ascending. Of equal scores the first rows are kept.
    """
    if limit is None:
        return torch.arange(len(scores), device=scores.device)
    order = scores.argsort(descending=True, stable=True)
    if levels is None:
        return order[:limit].sort()[0]
    kept = [order[levels[order] == k][:limit] for k in levels.unique()]
    return torch.cat([*kept, order[:0]]).sort()[0]


def divergence(logits: Tensor, target: Tensor, activation: str) -> Tensor:
    """Cross-entropy from the target's probabilities, less their entropy.

    The entropy is constant: the gradient is the cross-entropy's, and the
    value is the Kullback-Leibler divergence, which a perfect copy brings to
    exactly zero because both terms are then computed alike.

    Args:
        logits (Tensor): Shape (M, C).
        target (Tensor): Logits of the float model, (M, C).
        activation (str): ``'softmax'``, or ``'sigmoid'`` for a sum over C
            Bernoulli distributions.

    Returns:
        Tensor: Shape (M, ), in nats.
    """
    if activation == 'sigmoid':
        probability = target.sigmoid()
        loss = F.binary_cross_entropy_with_logits
        cross = loss(logits, probability, reduction='none')
        entropy = loss(target, probability, reduction='none')
        return (cross - entropy).sum(dim=1)
    logs = target.log_softmax(dim=1)
    return (logs.exp() * (logs - logits.log_softmax(dim=1))).sum(dim=1)


def kept(values: Tensor, keep: Tensor) -> Tensor:
    """The rows that count; they are to be summed.

    On a CPU the others are taken out. How many that leaves a GPU would have
    to be asked, so there they are zeros.

    Args:
        values (Tensor): Shape (M, ) or (M, C).
        keep (Tensor): bool (M, ).

    Returns:
        Tensor: Shape (N, ...), or (M, ...) with zeros.
    """
    return values[keep] if values.is_cpu else zeroed(values, keep)


def zeroed(values: Tensor, keep: Tensor) -> Tensor:
    """Zeros in the rows that do not count; arguments as of :func:`kept`."""
    return values.masked_fill(~keep.view(-1, *[1] * (values.dim() - 1)), 0)


def at_least_one(count: Tensor | int) -> Tensor | int:
    """A number to divide by: ``max(1, count)``, also of a tensor."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(1, count)


def raw_l2(outputs: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
    """Mean squared difference over all elements of all raw tensors.

    Args:
        outputs (Sequence[Tensor]): Of :class:`RawAdapter`.
        targets (Sequence[dict]): ``'raw'`` of the float model, each of the
            shape of its output.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: If shapes differ, as where a detector keeps another
            number of boxes in each run.
    """
    shapes = [tuple(o.shape) for o in outputs]
    wanted = [tuple(t['raw'].shape) for t in targets]
    if shapes != wanted:
        raise ValueError(
            'raw outputs of the float and the quantized detector differ in '
            f'shape and cannot be compared: {wanted} and {shapes}'
        )
    total = sum(
        (o - t['raw']).square().sum()
        for o, t in zip(outputs, targets, strict=True)
    )
    return total / max(1, sum(o.numel() for o in outputs))


def raw_targets(outputs: Sequence[Tensor]) -> list[Target]:
    """Constants that :func:`raw_l2` compares with."""
    return [dict(raw=o.detach().clone()) for o in outputs]
