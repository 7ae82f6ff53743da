# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Comparison of raw boxes with those of the float model, row by row."""

import torch
from torch import Tensor

from ..structures import DetectionOutputs
from .base import Target


def pick_boxes(boxes: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Raw boxes of rows, each of its class where classes have their own.

    Args:
        boxes (Tensor): Shape (N, 4) or (N, K, 4).
        rows (Tensor): int64 (M, ).
        labels (Tensor): int64 (M, ), foreground class of each row.

    Returns:
        Tensor: Shape (M, 4).
    """
    picked = boxes[rows]
    if picked.dim() == 2:
        return picked
    return picked[torch.arange(len(rows), device=rows.device), labels]


def overlapping(
    output: DetectionOutputs, boxes: Tensor, target: Target, least: float
) -> Tensor:
    """Reg-PTQ, Eq. 7: where a box still meets its float counterpart.

    Args:
        output (DetectionOutputs): Of the quantized model.
        boxes (Tensor): Its raw boxes of the target's rows, (M, 4).
        target (dict[str, Tensor]): Of the float model.
        least (float): Least intersection over union.

    Returns:
        Tensor: bool (M, ), a constant; all True where the head's boxes
        cannot be decoded.
    """
    if 'corners' not in target:
        return torch.ones_like(target['hc'])
    corners = output.decode(boxes.detach(), target['rows'])
    return _overlaps(target['corners'], corners) >= least


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of pairs of corners (M, 4), shape (M, ).

    As MMDetection's, which makes a tensor of a number of Python in each
    call.
    """
    low = torch.maximum(a[:, :2], b[:, :2])
    high = torch.minimum(a[:, 2:], b[:, 2:])
    width, height = (high - low).clamp(min=0).unbind(1)
    both = width * height
    areas = [(t[:, 2] - t[:, 0]) * (t[:, 3] - t[:, 1]) for t in (a, b)]
    return both / (areas[0] + areas[1] - both).clamp(min=1e-6)


def box_errors(
    output: DetectionOutputs, boxes: Tensor, target: Target, space: str
) -> Tensor:
    """Absolute differences of boxes.

    Args:
        output (DetectionOutputs): Of the quantized model.
        boxes (Tensor): Its raw boxes of the target's rows, (M, 4).
        target (dict[str, Tensor]): Of the float model.
        space (str): ``'raw'``, or ``'decoded'`` for corners in units of the
            float box's width and height (at least a pixel).

    Returns:
        Tensor: Shape (M, 4), differentiable.

    Raises:
        ValueError: If boxes that cannot be decoded are wanted decoded.
    """
    if space == 'raw':
        return (boxes - target['boxes']).abs()
    if 'corners' not in target:
        raise ValueError(
            f"box_space='decoded': {output.name} has no decode; use "
            "box_space='raw'"
        )
    wanted = target['corners']
    size = (wanted[:, 2:] - wanted[:, :2]).clamp(min=1).repeat(1, 2)
    return ((output.decode(boxes, target['rows']) - wanted) / size).abs()
