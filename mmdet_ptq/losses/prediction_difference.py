# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""PD-Quant's loss on class predictions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import number
from ..registry import LOSSES
from ..structures import DetectionOutputs
from .base import GlobalLoss, Outputs, Target
from .rows import (
    check_limit,
    confidence,
    divergence,
    is_mask,
    raw_l2,
    raw_targets,
    surest_rows,
)


@LOSSES.register_module()
class PredictionDifference(GlobalLoss):
    """Divergence of class predictions, as PD-Quant measures it.

    For each head, over its rows i with float logits y and quantized y^::

        PD = mean_i KL(softmax(y_i / T) || softmax(y^_i / T)) / lambda_r

    without a factor T^2; the divergence of sigmoid heads is that of
    Bernoulli distributions, summed over classes. Heads are added up. Boxes
    and masks do not count. PD-Quant classifies images; here a row is an
    anchor, cell, proposal or query.

    Outputs that are plain tensors, from :class:`RawAdapter`, are compared
    by their mean squared difference, divided by ``lambda_r`` too.

    Args:
        temperature (float): T, positive.
        lambda_r (float): Positive; it divides.
        weight (float): Factor of the whole, applied in ``__call__``.
        topk_per_level (int, optional): Rows of highest float confidence
            looked at on a level. None: all.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    reads_masks = False

    def __init__(
        self,
        temperature: float = 4.0,
        lambda_r: float = 0.1,
        weight: float = 1.0,
        topk_per_level: int | None = 1000,
    ) -> None:
        super().__init__(weight)
        self.temperature = number('temperature', temperature, 1e-6)
        self.lambda_r = number('lambda_r', lambda_r, 1e-6)
        self.topk_per_level = check_limit(topk_per_level)

    @torch.no_grad()
    def targets(self, outputs: Outputs) -> list[Target]:
        """Constants of the float model.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): Of the float
                model.

        Returns:
            list[dict[str, Tensor]]: One for each output: ``rows`` int64
            (M, ) and ``logits`` (M, C); empty for masks.
        """
        if outputs and isinstance(outputs[0], Tensor):
            return raw_targets(outputs)
        found: list[Target] = []
        for output in outputs:
            if is_mask(output):
                found.append({})
                continue
            rows = surest_rows(
                confidence(output)[0], output.levels, self.topk_per_level
            )
            found.append(dict(rows=rows, logits=output.logits[rows].detach()))
        return found

    def __call__(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """PD, times ``weight``.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): Of the quantized
                model, in the order of ``targets``.
            targets (Sequence[dict]): What :meth:`targets` gave.

        Returns:
            Tensor: Scalar, differentiable.

        Raises:
            ValueError: If the lengths differ, or raw tensors in shape.
        """
        factor = self.weight / self.lambda_r
        if outputs and isinstance(outputs[0], Tensor):
            return factor * raw_l2(outputs, targets)
        heads = self._sums(outputs, targets).values()
        return factor * sum(total / max(1, count) for total, count in heads)

    @torch.no_grad()
    def parts(
        self, outputs: Outputs, targets: Sequence[Target]
    ) -> dict[str, float]:
        """Mean divergence and rows of each head, for logs.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): As for a call.
            targets (Sequence[dict]): As for a call.

        Returns:
            dict[str, float]: ``'{head}.kl'`` before ``lambda_r`` and
            ``weight``, ``'{head}.n'``; ``'raw.l2'`` for raw tensors.
        """
        if outputs and isinstance(outputs[0], Tensor):
            return {'raw.l2': float(raw_l2(outputs, targets))}
        found = {}
        for name, (total, count) in self._sums(outputs, targets).items():
            found[f'{name}.kl'] = float(total) / max(1, count)
            found[f'{name}.n'] = float(count)
        return found

    def _sums(
        self, outputs: Sequence[DetectionOutputs], targets: Sequence[Target]
    ) -> dict[str, list]:
        """Sum of divergences and number of rows, by head."""
        sums: dict[str, list] = {}
        for output, target in zip(outputs, targets, strict=True):
            if is_mask(output):
                continue
            rows = target['rows']
            kl = divergence(
                output.logits[rows] / self.temperature,
                target['logits'] / self.temperature,
                output.activation,
            )
            here = sums.setdefault(output.name, [0.0, 0])
            here[0], here[1] = here[0] + kl.sum(), here[1] + len(rows)
        return sums
