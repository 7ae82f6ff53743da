# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Reg-PTQ's filtered global loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import number, one_of
from ..registry import LOSSES
from ..structures import DetectionOutputs
from .base import GlobalLoss, Outputs, Target
from .boxes import box_errors, overlapping, pick_boxes
from .rows import (
    at_least_one,
    check_limit,
    confidence,
    divergence,
    is_mask,
    kept,
    raw_l2,
    raw_targets,
    surest_rows,
)

CE_MASKS = ('hc', 'none', 'hc_hi')
BOX_SPACES = ('raw', 'decoded')


@LOSSES.register_module()
class DetectionLoss(GlobalLoss):
    """Distance of raw detector outputs from those of the float model.

    Reg-PTQ, Eq. 4 to 8, over all heads h and rows i (anchor, cell, proposal
    or query; y logits, b boxes, a hat for the quantized model)::

        L_G = sum_h [ sum_i m_i CE(y_i, y^_i) / n_ce
                      + lam sum_i M_i |b_i - b^_i|^p / n_box ]
        M = [conf_i >= theta_c] [IoU(b_i, b^_i) >= theta_i]

    CE is summed over classes (of sigmoid heads) and less its minimum, the
    entropy of y, so that a copy of the float model has loss 0; |.|^p is
    summed over the four coordinates; n_ce and n_box count what the masks
    keep, 1 at least. conf is the float model's highest foreground
    probability. The masks are constants: no gradient passes through them.

    The paper prints no mask on CE (Eq. 8, ``ce_mask='none'``) but says that
    boxes of low confidence are removed (``'hc'``). It gives neither lam nor
    p.

    Outputs that are plain tensors, from :class:`RawAdapter`, are compared
    by their mean squared difference alone.

    Args:
        theta_c (float): Least confidence. Above 1 (up to 1.1 is allowed)
            nothing is kept, and the loss is 0.
        theta_i (float): Least IoU of a box with its float counterpart.
        lam (float): Weight of the boxes.
        p (float): Exponent, at least 1.
        ce_mask (str): Rows whose classes count: ``'hc'`` of sufficient
            confidence, ``'hc_hi'`` also of sufficient IoU, ``'none'`` all.
        box_space (str): ``'raw'``: what the head regresses, as it was
            trained; ``'decoded'``: corners, differences divided by width
            and height of the float box (at least one pixel).
        topk_per_level (int, optional): Rows of highest confidence looked at
            on a level, for cost. None: all.
        weight (float): Factor of the whole, applied in ``__call__``.
        mask (bool): Whether masks count: the mean over boxes and pixels of
            CE, for an adapter made with ``mask=True``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(
        self,
        theta_c: float = 2e-4,
        theta_i: float = 0.1,
        lam: float = 1.0,
        p: float = 1,
        ce_mask: str = 'hc',
        box_space: str = 'raw',
        topk_per_level: int | None = 1000,
        weight: float = 1.0,
        mask: bool = False,
    ) -> None:
        super().__init__(weight)
        self.theta_c = number('theta_c', theta_c, 0, 1.1)
        self.theta_i = number('theta_i', theta_i, 0, 1)
        self.lam, self.p = number('lam', lam), number('p', p, 1)
        self.ce_mask = one_of('ce_mask', ce_mask, CE_MASKS)
        self.box_space = one_of('box_space', box_space, BOX_SPACES)
        self.topk_per_level = check_limit(topk_per_level)
        self.mask = self.reads_masks = mask

    @torch.no_grad()
    def targets(self, outputs: Outputs) -> list[Target]:
        """Constants of the float model, of the rows that can count only.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): Of the float
                model.

        Returns:
            list[dict[str, Tensor]]: One for each output, M rows each:
            ``rows`` int64 (M, ), ``logits`` (M, C), ``hc`` bool (M, ),
            ``labels`` int64 (M, ), ``boxes`` (M, 4) raw, ``corners`` (M, 4)
            in pixels; the last two only where the head has them.
        """
        if outputs and isinstance(outputs[0], Tensor):
            return raw_targets(outputs)
        return [self._target(output) for output in outputs]

    def __call__(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """The loss of Eq. 8, times ``weight``.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): Of the quantized
                model, in the order of ``targets``.
            targets (Sequence[dict]): What :meth:`targets` gave.

        Returns:
            Tensor: Scalar, differentiable, finite for finite outputs.

        Raises:
            ValueError: If the lengths differ, raw tensors differ in shape,
                or boxes that cannot be decoded are wanted decoded.
        """
        if outputs and isinstance(outputs[0], Tensor):
            return self.weight * raw_l2(outputs, targets)
        loss = sum(
            ce / at_least_one(n_ce) + self.lam * box / at_least_one(n_box)
            for ce, n_ce, box, n_box in self._sums(outputs, targets).values()
        )
        return self.weight * loss

    @torch.no_grad()
    def parts(
        self, outputs: Outputs, targets: Sequence[Target]
    ) -> dict[str, float]:
        """What the loss is made of, for logs; before ``lam``, ``weight``.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): As for a call.
            targets (Sequence[dict]): As for a call.

        Returns:
            dict[str, float]: ``'{head}.ce'``, ``'{head}.box'``: means over
            kept rows; ``'{head}.n_ce'``, ``'{head}.n_box'``: their numbers.
            ``'raw.l2'`` for raw tensors.
        """
        if outputs and isinstance(outputs[0], Tensor):
            return {'raw.l2': float(raw_l2(outputs, targets))}
        found = {}
        for name, sums in self._sums(outputs, targets).items():
            ce, n_ce, box, n_box = (float(v) for v in sums)
            found[f'{name}.ce'] = ce / max(1, n_ce)
            found[f'{name}.box'] = box / max(1, n_box)
            found[f'{name}.n_ce'] = n_ce
            found[f'{name}.n_box'] = n_box
        return found

    def _target(self, output: DetectionOutputs) -> Target:
        """Constants of one head on one image."""
        if is_mask(output):
            return dict(logits=output.logits.detach()) if self.mask else {}
        scores, labels = confidence(output)
        rows = surest_rows(scores, output.levels, self.topk_per_level)
        if self.ce_mask != 'none':
            rows = rows[scores[rows] >= self.theta_c]
        found = dict(
            rows=rows,
            logits=output.logits[rows].detach(),
            hc=scores[rows] >= self.theta_c,
            labels=labels[rows],
        )
        if output.boxes is not None:
            boxes = pick_boxes(output.boxes, rows, found['labels']).detach()
            found['boxes'] = boxes
            if output.decode is not None:
                found['corners'] = output.decode(boxes, rows).detach()
        return found

    def _sums(
        self, outputs: Sequence[DetectionOutputs], targets: Sequence[Target]
    ) -> dict[str, list]:
        """Sum and count of CE and of boxes, by head, over all images."""
        sums: dict[str, list] = {}
        for output, target in zip(outputs, targets, strict=True):
            here = sums.setdefault(output.name, [0.0, 0, 0.0, 0])
            for k, value in enumerate(self._terms(output, target)):
                here[k] = here[k] + value
        return sums

    def _terms(self, output: DetectionOutputs, target: Target) -> list:
        """Sum and count of CE and of boxes, of one head on one image."""
        logits = output.logits
        nothing = logits[:0].sum()
        if is_mask(output):
            if not self.mask:
                return [nothing, 0, nothing, 0]
            kl = divergence(logits, target['logits'], output.activation)
            pixels = max(1, logits.shape[1])
            return [kl.sum() / pixels, len(kl), nothing, 0]
        rows, keep = target['rows'], target['hc']
        box, both = nothing, keep
        n_box: Tensor | int = 0
        if 'boxes' in target:
            boxes = pick_boxes(output.boxes, rows, target['labels'])
            both = keep & overlapping(output, boxes, target, self.theta_i)
            errors = box_errors(output, boxes, target, self.box_space)
            box = kept(errors, both).pow(self.p).sum()
            n_box = both.sum()
        kl = divergence(logits[rows], target['logits'], output.activation)
        # rows of low confidence are targets for ce_mask='none' only
        if self.ce_mask == 'hc_hi':
            return [kept(kl, both).sum(), both.sum(), box, n_box]
        return [kl.sum(), len(kl), box, n_box]
