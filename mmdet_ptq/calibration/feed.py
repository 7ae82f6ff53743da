# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How passes run calibration images, batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import nn

from .data import CalibrationImages


class Feed(ABC):
    """This rank's calibration batches, and how they go through the model.

    A run of a config has one image in each batch. Who calls
    ``quantize_detector`` makes the batches; then one may hold several images,
    and whatever counts here, progress included, counts batches.
    """

    @property
    @abstractmethod
    def total(self) -> int:
        """How many batches there are."""

    @property
    def skipped(self) -> list[str]:
        """Names of images that could not be read; may grow."""
        return []

    def skip(self, names: Iterable[str]) -> None:  # noqa: B027
        """Counts images as skipped that an earlier run could not read.

        Args:
            names (Iterable[str]): As in :attr:`skipped`.
        """

    @abstractmethod
    def batch(self, i: int) -> dict | None:
        """Batch ``i`` as the model takes it, None if it cannot be read."""

    @abstractmethod
    def predict(
        self, start: int = 0, after: Callable[[int], None] = lambda _: None
    ) -> None:
        """Predicts on the batches from ``start`` on, the deployed path.

        Args:
            start (int): Index of the first batch. Defaults to 0.
            after (Callable): Called with the index after each batch.
        """

    @abstractmethod
    def run_raw(self, count: int) -> None:
        """Runs the first readable batches in raw ``'tensor'`` mode.

        That also reaches layers that a prediction skips when nothing is
        detected. Every rank runs the same batches.

        Args:
            count (int): How many.
        """


class Batches(Feed):
    """Batches that a user holds.

    Args:
        model (nn.Module): A detector of MMDetection.
        batches (list[dict]): As ``model.test_step`` takes them.
    """

    def __init__(self, model: nn.Module, batches: list[dict]) -> None:
        self.model = model
        self.batches = batches

    @property
    def total(self) -> int:
        """See :attr:`Feed.total`."""
        return len(self.batches)

    def batch(self, i: int) -> dict:
        """See :meth:`Feed.batch`; lists in it are copies."""
        return {
            k: list(v) if isinstance(v, list) else v
            for k, v in self.batches[i].items()
        }

    @torch.no_grad()
    def predict(
        self, start: int = 0, after: Callable[[int], None] = lambda _: None
    ) -> None:
        """See :meth:`Feed.predict`."""
        for i in range(start, self.total):
            self.model.test_step(self.batches[i])
            after(i)

    @torch.no_grad()
    def run_raw(self, count: int) -> None:
        """See :meth:`Feed.run_raw`."""
        for batch in self.batches[:count]:
            data = self.model.data_preprocessor(batch, False)
            self.model(**data, mode='tensor')


class ImageFeed(Feed):
    """Images that are read one by one.

    Args:
        model (nn.Module): A detector of MMDetection.
        images (CalibrationImages): A batch each.
    """

    def __init__(self, model: nn.Module, images: CalibrationImages) -> None:
        self.model = model
        self.images = images

    @property
    def skipped(self) -> list[str]:
        """See :attr:`Feed.skipped`."""
        return self.images.skipped

    def skip(self, names: Iterable[str]) -> None:
        """See :meth:`Feed.skip`."""
        known = self.images.skipped
        known += [name for name in names if name not in known]

    @property
    def total(self) -> int:
        """See :attr:`Feed.total`."""
        return len(self.images)

    def batch(self, i: int) -> dict | None:
        """See :meth:`Feed.batch`."""
        return self.images.load(i)

    @torch.no_grad()
    def predict(
        self, start: int = 0, after: Callable[[int], None] = lambda _: None
    ) -> None:
        """See :meth:`Feed.predict`."""
        for i, batch in self.images.batches(start):
            if batch is not None:
                self.model.test_step(batch)
            after(i)

    @torch.no_grad()
    def run_raw(self, count: int) -> None:
        """See :meth:`Feed.run_raw`."""
        readable = (b for _, b in self.images.batches() if b is not None)
        for batch in islice(readable, count):
            data = self.model.data_preprocessor(batch, False)
            self.model(**data, mode='tensor')
