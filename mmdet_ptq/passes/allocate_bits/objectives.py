# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a width costs: distances of a detector from the float one.

A distance is the sum of squares of residuals, which are linear in what the
detector gives. So ``<v, r>`` of a random v with independent entries of
variance 1 has the distance as the mean of its square, and its gradients say
what small changes do to the distance.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...calibration import Images, Session
from ...detectors import has_adapter, why_no_outputs
from ...errors import QuantConfigError
from ...losses.boxes import pick_boxes
from ...losses.rows import confidence, is_mask, surest_rows
from ...structures import DetectionOutputs, LayerNode

OBJECTIVES = ('feature', 'output', 'roi')
Target = dict[str, Tensor]
#: rows of highest confidence that are looked at on a pyramid level
ROWS = 1000
TINY = 1e-12
ROI = 'roi_head'


class _Enough(Exception):
    """Ends a forward whose rest is not needed."""


class Distance(ABC):
    """Squared distance of what the detector gives from what it gave.

    Attributes:
        on_outputs (bool): Whether it needs the outputs of the detector.
    """

    on_outputs = True

    def reaches(self, node: LayerNode) -> bool:
        """Whether what a layer does can matter, by where the layer is."""
        return True

    @abstractmethod
    def run(self, images: Images, j: int) -> list[Any]:
        """What the detector, as it is now, gives on image ``j``."""

    @abstractmethod
    def targets(self, outputs: Sequence[Any]) -> list[Target]:
        """Constants of the float detector.

        Args:
            outputs (Sequence): Of :meth:`run` in the float detector.

        Returns:
            list[dict[str, Tensor]]: One for each of them.
        """

    @abstractmethod
    def residuals(
        self, outputs: Sequence[Any], targets: Sequence[Target]
    ) -> list[Tensor]:
        """Weighted differences from the float detector.

        Args:
            outputs (Sequence): Of :meth:`run`.
            targets (Sequence[dict]): Of :meth:`targets`.

        Returns:
            list[Tensor]: Of any shapes, linear in ``outputs``; the sum of
            all squares is the distance.
        """

    def __call__(
        self, outputs: Sequence[Any], targets: Sequence[Target]
    ) -> Tensor:
        """The distance, a scalar of float64."""
        found = self.residuals(outputs, targets)
        return torch.stack([r.double().square().sum() for r in found]).sum()


class Features(Distance):
    """Mean relative squared error of the maps that the backbone gives.

    F-LBQ's alteration of the backbone's features: ``mean_l |F_l - f_l|^2 /
    |f_l|^2`` over the maps f of the float detector.

    Args:
        model (nn.Module): The detector.

    Raises:
        QuantConfigError: If it has no backbone.
    """

    on_outputs = False

    def __init__(self, model: nn.Module) -> None:
        children = dict(model.named_children())
        if 'backbone' not in children:
            raise QuantConfigError(
                "AllocateBits: objective='feature' compares what the "
                f'backbone gives, and {type(model).__name__} has none; use '
                "objective='output'"
            )
        self.backbone = children['backbone']

    def reaches(self, node: LayerNode) -> bool:
        """See :meth:`Distance.reaches`."""
        return 'backbone' in node.roles

    def run(self, images: Images, j: int) -> list[Tensor]:
        """See :meth:`Distance.run`; what follows the backbone is left out."""
        found: list[Tensor] = []

        def after(_: nn.Module, __: Any, output: Any) -> None:
            found.extend(
                leaf
                for leaf in tree_leaves(output)
                if isinstance(leaf, Tensor) and leaf.is_floating_point()
            )
            raise _Enough

        hook = self.backbone.register_forward_hook(after)
        try:
            with suppress(_Enough):
                images.run(j)
        finally:
            hook.remove()
        return found

    def targets(self, outputs: Sequence[Tensor]) -> list[Target]:
        """See :meth:`Distance.targets`."""
        return _relative(outputs)

    def residuals(
        self, outputs: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Tensor]:
        """See :meth:`Distance.residuals`."""
        return _relative_residuals(outputs, targets)


class Predictions(Distance):
    """Squared error of the detector's outputs, by what they mean.

    The mean over heads of two parts. Of classes: the Kullback-Leibler
    divergence from the float predictions, to second order, averaged over
    rows by the confidence of the float detector. Of boxes: the squared error
    of what is regressed over its square, rows weighted alike. Of masks: the
    mean divergence of pixels. Rows are those of
    :class:`mmdet_ptq.detectors.Adapter`, 1000 of a pyramid level. Outputs
    that nobody described count by their relative squared errors.

    Args:
        model (nn.Module): The detector.
        roi (bool): Whether RoI heads alone count. Defaults to False.

    Raises:
        QuantConfigError: If they should and there are none.
    """

    def __init__(self, model: nn.Module, roi: bool = False) -> None:
        self.roi = roi
        if roi and (
            ROI not in dict(model.named_children()) or not has_adapter(model)
        ):
            raise QuantConfigError(
                "AllocateBits: objective='roi' compares what RoI heads give, "
                f'and {type(model).__name__} has none that an adapter reads; '
                "use objective='output'"
            )

    def reaches(self, node: LayerNode) -> bool:
        """RoI heads see the proposals of the float detector."""
        return not self.roi or 'rpn' not in node.roles

    def run(self, images: Images, j: int) -> list[Any]:
        """See :meth:`Distance.run`."""
        found = images.run(j)
        if not self.roi:
            return list(found)
        return [one for one in found if one.name.startswith(ROI)]

    @torch.no_grad()
    def targets(self, outputs: Sequence[Any]) -> list[Target]:
        """See :meth:`Distance.targets`."""
        if outputs and isinstance(outputs[0], Tensor):
            return _relative(outputs)
        return [_target(output) for output in outputs]

    def residuals(
        self, outputs: Sequence[Any], targets: Sequence[Target]
    ) -> list[Tensor]:
        """See :meth:`Distance.residuals`."""
        if outputs and isinstance(outputs[0], Tensor):
            return _relative_residuals(outputs, targets)
        found: list[Tensor] = []
        for output, target in zip(outputs, targets, strict=True):
            found.append(_logit_residual(output, target))
            if 'boxes' in target:
                rows, labels = target['rows'], target['labels']
                boxes = pick_boxes(output.boxes, rows, labels)
                found.append((boxes - target['boxes']) * target['box_factor'])
        return [r / max(1, len(targets)) ** 0.5 for r in found]


def _relative(outputs: Sequence[Tensor]) -> list[Target]:
    """Tensors, and what makes their squared errors relative."""
    found = []
    for y in outputs:
        y = y.detach()
        squares = y.double().square().sum() * len(outputs)
        factor = squares.clamp(min=TINY).rsqrt().to(y.dtype)
        found.append(dict(value=y, factor=factor))
    return found


def _relative_residuals(
    outputs: Sequence[Tensor], targets: Sequence[Target]
) -> list[Tensor]:
    return [
        (y - t['value']) * t['factor']
        for y, t in zip(outputs, targets, strict=True)
    ]


def _target(output: DetectionOutputs) -> Target:
    """Constants of one head on one image."""
    if is_mask(output):
        rows = torch.arange(len(output.logits), device=output.logits.device)
        weight = output.logits.new_full((len(rows),), 1 / max(1, len(rows)))
        weight = weight / max(1, output.logits.shape[1])
        return dict(rows=rows, weight=weight, logits=output.logits.detach())
    scores, labels = confidence(output)
    rows = surest_rows(scores, output.levels, ROWS)
    total = scores[rows].sum().clamp(min=TINY)
    found = dict(
        rows=rows,
        labels=labels[rows],
        weight=scores[rows] / total,
        logits=output.logits[rows].detach(),
    )
    if output.boxes is not None:
        boxes = pick_boxes(output.boxes, rows, labels[rows]).detach()
        squares = (found['weight'][:, None] * boxes.square()).sum()
        factor = (found['weight'] / squares.clamp(min=TINY)).sqrt()
        found.update(boxes=boxes, box_factor=factor[:, None])
    return found


def _logit_residual(output: DetectionOutputs, target: Target) -> Tensor:
    """Its sum of squares is the divergence to second order, by row.

    ``d^T H d / 2`` with ``H = diag(p (1 - p))`` of sigmoids, and ``H =
    diag(p) - p p^T`` of a softmax.
    """
    d = output.logits[target['rows']] - target['logits']
    weight = (target['weight'][:, None] / 2).sqrt()
    if output.activation == 'sigmoid':
        p = target['logits'].sigmoid()
        return d * (p * (1 - p)).sqrt() * weight
    p = target['logits'].softmax(1)
    return (d - (p * d).sum(1, keepdim=True)) * p.sqrt() * weight


def distance_of(session: Session, objective: str) -> Distance:
    """The distance of an objective.

    Args:
        session (Session): The running quantization.
        objective (str): One of :data:`OBJECTIVES`.

    Raises:
        QuantConfigError: If the detector has not what it compares.
    """
    if objective == 'feature':
        return Features(session.model)
    why = why_no_outputs(session.model, session.graph)
    if why:
        raise QuantConfigError(
            f"AllocateBits: objective={objective!r} compares the detector's "
            f"outputs, but {why}; use objective='feature'"
        )
    return Predictions(session.model, objective == 'roi')


def refuse_silent(names: Sequence[str], objective: str) -> None:
    """Refuses tensors that do nothing to what is compared.

    Args:
        names (Sequence[str]): Of them, may be none.
        objective (str): One of :data:`OBJECTIVES`.

    Raises:
        QuantConfigError: If there are any.
    """
    if names:
        raise QuantConfigError(
            f'AllocateBits: {", ".join(names[:8])}'
            + (f' and {len(names) - 8} others' * (len(names) > 8))
            + f': the objective {objective!r} does not depend on them; leave '
            'them out by scope, or take another objective'
        )
