# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The loop over calibration images, with hook points of its own."""

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, Runner

from ..calibration import CalibrationImages, Feed
from ..detectors import detector_of


@LOOPS.register_module()
class CalibLoop(BaseLoop, Feed):
    """Predicts each calibration image, on the deployed path.

    Hooks may define ``before_calib``, ``before_calib_iter``,
    ``after_calib_iter`` and ``after_calib``; MMEngine calls whatever hook
    methods exist.

    Args:
        runner (Runner): Its model and hooks are used.
        dataloader (CalibrationImages): This rank's images.
        everyone (CalibrationImages, optional): Those of all ranks.
            Defaults to ``dataloader``.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: CalibrationImages,
        everyone: CalibrationImages | None = None,
    ) -> None:
        super().__init__(runner, dataloader)
        self.everyone = everyone or dataloader

    @property
    def skipped(self) -> list[str]:
        """Names of this rank's images that could not be read."""
        return self.dataloader.skipped

    def skip(self, names: Iterable[str]) -> None:
        """See :meth:`Feed.skip`."""
        known = self.dataloader.skipped
        known += [name for name in names if name not in known]

    @property
    def total(self) -> int:
        """How many batches there are, of one image each."""
        return len(self.dataloader)

    def batch(self, i: int) -> dict | None:
        """Image ``i`` as the model takes it, None if it cannot be read."""
        return self.dataloader.load(i)

    @torch.no_grad()
    def predict(
        self, start: int = 0, after: Callable[[int], None] = lambda _: None
    ) -> None:
        """Runs the images from ``start`` on.

        Args:
            start (int): Index of the first image. Defaults to 0.
            after (Callable): Called with the index after each image.
        """
        runner = self.runner
        model = detector_of(runner.model)
        runner.call_hook('before_calib', total=self.total)
        ahead = next(model.parameters()).is_cuda
        for i, batch in self.dataloader.batches(start, ahead):
            runner.call_hook('before_calib_iter', batch_idx=i)
            if batch is not None:
                model.test_step(batch)
            after(i)
            runner.call_hook('after_calib_iter', batch_idx=i)
        runner.call_hook('after_calib')

    def run(self) -> None:
        """Runs all images, as MMEngine calls a loop."""
        self.predict()

    @torch.no_grad()
    def run_raw(self, count: int) -> None:
        """Runs the first readable images, the same ones on every rank.

        Without post-processing.

        Args:
            count (int): How many.
        """
        model = detector_of(self.runner.model)
        readable = (b for _, b in self.everyone.batches() if b is not None)
        for batch in islice(readable, count):
            data = model.data_preprocessor(batch, False)
            model(**data, mode='tensor')
