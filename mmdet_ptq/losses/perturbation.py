# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How far the outputs of a detector move, as IGQ-ViT measures it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import number
from ..registry import LOSSES
from ..structures import DetectionOutputs
from .base import GlobalLoss, Outputs, Target
from .boxes import pick_boxes
from .rows import (
    at_least_one,
    confidence,
    divergence,
    is_mask,
    raw_l2,
    raw_targets,
    zeroed,
)


@LOSSES.register_module()
class OutputPerturbation(GlobalLoss):
    """``KL(y || y') + |b - b'| + |m - m'|`` (IGQ-ViT, supplement, Eq. A).

    Moon et al. (2024) take it of each region of interest: class
    probabilities y, box offsets b and mask m of its class. Here the class is
    the one that the first detector is surest of, and a row has one if that
    is not the background, or, of heads with sigmoids, if its probability is
    0.3 or more. KL is a mean over rows, the boxes' sum over four numbers one
    over rows with a class, the masks' mean over pixels one over masks. Terms
    of heads, and of the stages of a cascade, add up; a region proposal
    network does not count. Rows of DETR are its queries.

    Outputs that are plain tensors are compared by their mean squared
    difference.

    Args:
        least (float): Least probability of a class, of heads with sigmoids.
            Defaults to 0.3.
        weight (float): Factor of the whole. Defaults to 1.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(self, least: float = 0.3, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.least = number('least', least, 0, 1)

    @torch.no_grad()
    def targets(self, outputs: Outputs) -> list[Target]:
        """See :meth:`GlobalLoss.targets`; none for what does not count."""
        if outputs and isinstance(outputs[0], Tensor):
            return raw_targets(outputs)
        return [self._target(output) for output in outputs]

    def _target(self, output: DetectionOutputs) -> Target:
        if output.name == 'rpn_head':
            return {}
        found = dict(logits=output.logits.detach())
        if is_mask(output) or output.boxes is None:
            return found
        scores, labels = confidence(output)
        if output.background is None:
            found['classed'] = scores >= self.least
        else:
            rest = output.logits.softmax(1)[:, output.background]
            found['classed'] = scores > rest
        rows = torch.arange(len(labels), device=labels.device)
        boxes = pick_boxes(output.boxes, rows, labels)
        return dict(found, labels=labels, rows=rows, boxes=boxes.detach())

    def __call__(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """See :meth:`GlobalLoss.__call__`.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): Of one image.
            targets (Sequence[dict]): What :meth:`targets` gave.
        """
        if outputs and isinstance(outputs[0], Tensor):
            return self.weight * raw_l2(outputs, targets)
        pairs = zip(outputs, targets, strict=True)
        return self.weight * sum(self._term(o, t) for o, t in pairs)

    def _term(self, output: DetectionOutputs, target: Target) -> Tensor:
        logits = output.logits
        if not target or not len(logits):
            return logits[:0].sum()
        if is_mask(output):
            off = logits.sigmoid() - target['logits'].sigmoid()
            return off.abs().mean()
        kl = divergence(logits, target['logits'], output.activation).mean()
        if 'boxes' not in target:
            return kl
        boxes = pick_boxes(output.boxes, target['rows'], target['labels'])
        off = (boxes - target['boxes']).abs().sum(1)
        count = at_least_one(target['classed'].sum())
        return kl + zeroed(off, target['classed']).sum() / count
