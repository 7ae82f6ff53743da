# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Training images that calibrate, rank and verify: none twice, none tested."""

import copy
import io
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from torch import nn

from ..calibration import CalibrationImages, from_config
from ..errors import CalibrationError, QuantConfigError
from ..layers import float_mode
from ..passes.measure_sensitivity import Score
from ..quant_cfg import Calibration
from .metrics import plain_metrics

#: evaluators that take annotations from the samples
_EVALUATORS = ('CocoMetric', 'VOCMetric')


@dataclass(frozen=True)
class Split:
    """Images of one set, each in one part at most.

    Attributes:
        calibrate (CalibrationImages): The same as those of a run of
            ``mmdet-ptq quantize``.
        rank (CalibrationImages): By which cheap scores are taken.
        verify (CalibrationImages): With their annotations; may be none.
    """

    calibrate: CalibrationImages
    rank: CalibrationImages
    verify: CalibrationImages

    def names(self) -> dict[str, list[str]]:
        """Names of the images of each part."""
        return {
            part: [images.names[i] for i in images.indices]
            for part, images in vars(self).items()
        }

    def words(self) -> str:
        """How many images do what, in a sentence."""
        return (
            f'{len(self.calibrate)} images calibrate, {len(self.rank)} others '
            f'rank and {len(self.verify)} others verify, none of them of the '
            'test'
        )


def split_images(
    cfg: Config, calibration: Calibration, rank: int, verify: int
) -> Split:
    """Chooses images by the seed, without those of the test.

    Args:
        cfg (Config): A full MMDetection config.
        calibration (Calibration): Source, number and seed.
        rank (int): How many rank.
        verify (int): How many verify.

    Returns:
        Split: In disjoint parts.

    Raises:
        QuantConfigError: If the test images are asked for.
        CalibrationError: If there are too few images.
    """
    if calibration.source == 'test':
        raise QuantConfigError(
            "calibration.source='test': what is chosen by test images looks "
            "better than it is; take 'train' or a folder of images"
        )
    first, wanted = calibration.num_samples, rank + verify
    several = replace(calibration, num_samples=first + wanted)
    images = from_config(cfg, several)
    if len(images) < first + wanted:
        raise CalibrationError(
            f'{first + wanted} images are needed, {first} to calibrate, '
            f'{rank} to rank and {verify} to verify, and there are only '
            f'{len(images)}; ask for fewer by --calib-num, --rank-num or '
            '--verify-num'
        )
    last = range(first + rank, first + wanted)
    annotated = from_config(cfg, several, True) if verify else images
    return Split(
        images.take(range(first)),
        images.take(range(first, first + rank)),
        annotated.take(last),
    )


class MetricScore(Score):
    """What the first metric of the config's evaluator loses.

    Args:
        model (nn.Module): The detector, with twins or without.
        images (CalibrationImages): With their annotations.
        cfg (Config): A full MMDetection config.

    Attributes:
        metric (str): Its name, once :meth:`measure_float` has run.
        exact (float): Of the float detector.

    Raises:
        QuantConfigError: If the evaluator cannot take other images.
    """

    name = 'ap'

    def __init__(
        self, model: nn.Module, images: CalibrationImages, cfg: Config
    ) -> None:
        self.images = range(len(images))
        self.metric, self.exact = '', 0.0
        self._model = model
        self._batches = images
        self._evaluators = _evaluators(cfg)
        self._metainfo = images.source.metainfo

    def of(self, model: nn.Module) -> 'MetricScore':
        """The same of another detector, e.g. one that is quantized.

        Args:
            model (nn.Module): It may have no float weights left.
        """
        other = copy.copy(self)
        other._model = model
        return other

    @torch.no_grad()
    def run(self, j: int) -> Any:
        """See :meth:`Score.run`; None if the image cannot be read."""
        batch = self._batches.load(j)
        if batch is None:
            return None
        for sample in batch['data_samples']:
            # sets end to end may have a number twice
            sample.set_metainfo(dict(img_id=j))
        return self._model.test_step(batch)

    def measure_float(self) -> None:
        """Learns the metric of the float detector.

        Raises:
            CalibrationError: If it has none on these images.
        """
        with float_mode(self._model):
            seen = ((j, self.run(j)) for j in self.images)
            found = self._metrics(seen)
        if not found:
            raise CalibrationError(
                'the float detector finds nothing on the images that verify, '
                'or they have no objects; take more by --verify-num'
            )
        self.metric, self.exact = next(iter(found.items()))

    def total(self, seen: Iterable[tuple[int, Any]]) -> dict[str, float]:
        """See :meth:`Score.total`; ``metric`` is the metric itself."""
        # with nothing found there is no metric
        value = self._metrics(seen).get(self.metric, 0.0)
        return dict(score=self.exact - value, metric=value)

    def _metrics(self, seen: Iterable[tuple[int, Any]]) -> dict[str, float]:
        evaluator = Evaluator(copy.deepcopy(self._evaluators))
        evaluator.dataset_meta = self._metainfo
        count = 0
        for _, outputs in seen:
            if outputs is not None:
                evaluator.process(outputs)
                count += len(outputs)
        with _silent():
            found = plain_metrics(evaluator.evaluate(count))
        # -1 stands for no object of that kind
        return {
            k: float(v)
            for k, v in found.items()
            if isinstance(v, int | float) and v >= 0
        }


@contextmanager
def _silent() -> Iterator[None]:
    """Without the tables that metrics print of each of many evaluations."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _evaluators(cfg: Config) -> list[dict]:
    """Those of the config that can take annotations from samples."""
    given = cfg.get('test_evaluator')
    several = list(given) if isinstance(given, list | tuple) else [given]
    found = []
    for one in several:
        kind = str(one.get('type')) if isinstance(one, dict) else ''
        if kind.rpartition('.')[2] not in _EVALUATORS:
            continue
        one = copy.deepcopy(dict(one))
        for key in ('ann_file', 'format_only', 'outfile_prefix'):
            one.pop(key, None)
        found.append(one)
    if not found:
        raise QuantConfigError(
            'the test_evaluator of the config cannot take training images: '
            f'AP is verified by {" or ".join(_EVALUATORS)}; add one of them, '
            'or measure without AP (--score output, --check 0)'
        )
    return found
