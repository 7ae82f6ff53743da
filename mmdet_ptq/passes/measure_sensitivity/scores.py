# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How far a detector is from the float one, without annotations."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...calibration import ActivationCache, Images, Session
from ...detectors import Adapter, adapter_for, why_no_outputs
from ...errors import CalibrationError, QuantConfigError
from ...losses import DetectionLoss, GlobalLoss, Outputs, Target
from ...structures import DetectionOutputs

#: each with what it is, for the help
SCORES = dict(
    output='class divergence and box shift, row by row, of sure rows',
    feature='relative error of what backbone and neck give',
    ap='loss of the metric on training images with annotations',
)
#: rows of a float detector count from this confidence on
SURE = 0.05


class Score(ABC):
    """What is lost in the detector as it is set now; 0 in float.

    Attributes:
        name (str): A key of :data:`SCORES`.
        images (Sequence[int]): Numbers of the images that it looks at.
    """

    name: str
    images: Sequence[int]

    @abstractmethod
    def run(self, j: int) -> Any:
        """Runs the detector on image ``j``; what it gives is looked at."""

    @abstractmethod
    def total(self, seen: Iterable[tuple[int, Any]]) -> dict[str, float]:
        """What is lost on all images.

        Args:
            seen (Iterable[tuple[int, Any]]): Image and what :meth:`run`
                gave; taken one by one.

        Returns:
            dict[str, float]: ``score``, and what it is made of.
        """


class ImageScore(Score):
    """The mean over images of a distance between raw outputs.

    Args:
        name (str): Key of :data:`SCORES`.
        images (Images): Hold the constants of the float model.
        loss (GlobalLoss): Says what a distance is made of.
    """

    def __init__(self, name: str, images: Images, loss: GlobalLoss) -> None:
        self.name = name
        self.images = images.mine
        self._given = images
        self._loss = loss

    def run(self, j: int) -> Any:
        """See :meth:`Score.run`."""
        return self._given.run(j)

    @torch.no_grad()
    def total(self, seen: Iterable[tuple[int, Any]]) -> dict[str, float]:
        """See :meth:`Score.total`."""
        sums: dict[str, float] = {}
        rows = 0.0
        for j, outputs in seen:
            parts = self._loss.parts(outputs, self._given.targets(j)[0])
            for key, value in parts.items():
                kind = _kind(key)
                if kind == 'rows':
                    rows += value
                elif kind:
                    sums[kind] = sums.get(kind, 0.0) + value
        if 'class' in sums and not rows:
            raise CalibrationError(
                f'{self.name}: the float detector gives no row a confidence '
                f'of {SURE:g} on these images, so nothing can be compared; '
                'take other images, or --score feature'
            )
        found = {k: v / len(self.images) for k, v in sums.items()}
        return dict(score=sum(found.values()), **found)


def _kind(key: str) -> str:
    """What a part of a loss counts as; '' if it is not looked at."""
    last = key.rpartition('.')[2]
    kinds = dict(ce='class', box='box', l2='error', n_ce='rows')
    return kinds.get(last, '')


class FeatureAdapter(Adapter):
    """Runs backbone and neck alone, and gives their maps."""

    def outputs(
        self, model: nn.Module, batch: dict, anchor: dict[str, Tensor]
    ) -> list[Tensor]:
        """The feature maps, each (N, C, H, W)."""
        found = model.extract_feat(batch['inputs'])
        several = isinstance(found, list | tuple)
        return [y.float() for y in (found if several else [found])]


class FeatureError(GlobalLoss):
    """Squared error of each map over its squares, the mean of all maps."""

    def targets(self, outputs: Outputs) -> list[Target]:
        """See :meth:`GlobalLoss.targets`."""
        return [dict(y=_tensor(y).detach()) for y in outputs]

    def __call__(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """See :meth:`GlobalLoss.__call__`."""
        ratios = [
            (_tensor(y) - t['y']).double().square().sum()
            / t['y'].double().square().sum().clamp(min=1e-30)
            for y, t in zip(outputs, targets, strict=True)
        ]
        return torch.stack(ratios).mean()

    def parts(
        self, outputs: Outputs, targets: Sequence[Target]
    ) -> dict[str, float]:
        """See :meth:`GlobalLoss.parts`."""
        return {'feature.l2': float(self(outputs, targets))}


def _tensor(y: DetectionOutputs | Tensor) -> Tensor:
    assert isinstance(y, Tensor)  # FeatureAdapter gives nothing else
    return y


class _Decodable(GlobalLoss):
    """Notes whether the boxes of all heads can be decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.all = True

    def targets(self, outputs: Outputs) -> list[Target]:
        for one in outputs:
            if isinstance(one, DetectionOutputs) and one.boxes is not None:
                self.all = self.all and one.decode is not None
        return []

    def __call__(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        return torch.zeros(())


def image_score(
    name: str, session: Session, cache: ActivationCache
) -> ImageScore:
    """A score that needs no annotations.

    Args:
        name (str): ``'output'``: for each head, the mean divergence of
            classes and the mean shift of box corners, in widths and heights
            of the float box, over the rows to which the float detector gives
            a confidence of 0.05 or more; the mean over images. ``'feature'``:
            the squared error of each map of backbone and neck over its
            squares, the mean over maps and images.
        session (Session): Its feed holds the images.
        cache (ActivationCache): Where constants are kept.

    Returns:
        ImageScore: Of this detector.

    Raises:
        QuantConfigError: If the detector has no such outputs.
        CalibrationError: If no image can be read.
    """
    adapter: Adapter = FeatureAdapter()
    loss: GlobalLoss = FeatureError()
    if name == 'output':
        why = why_no_outputs(session.model, session.graph)
        if why:
            raise QuantConfigError(
                f"--score output compares the detector's outputs, but {why}; "
                'take --score feature, or register an adapter (see '
                'mmdet_ptq.detectors.Adapter)'
            )
        adapter = adapter_for(session.model, session.graph, True)
        loss = _output_loss(session, adapter)
    images = Images(session, cache, adapter, [loss])
    if not images.mine:
        raise CalibrationError('none of the ranking images can be read')
    return ImageScore(name, images, loss)


def _output_loss(session: Session, adapter: Adapter) -> DetectionLoss:
    """Corners are compared where every head can give them."""
    seen = _Decodable()
    with session.cache() as cache:
        Images(session, cache, adapter, [seen], limit=1)
    space = 'decoded' if seen.all else 'raw'
    # boxes that meet no longer are what is lost: none is masked
    return DetectionLoss(theta_c=SURE, theta_i=0.0, box_space=space, mask=True)
