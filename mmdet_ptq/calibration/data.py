# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A choice of calibration images, read one by one."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log

from ..errors import CalibrationError


class CalibrationImages:
    """A fixed choice of images; those that cannot be read are skipped.

    Args:
        source (Sequence): ``source[i]`` gives the input of ``model
            .test_step`` for one image, uncollated.
        names (Sequence[str]): A name for each, for messages.
        indices (Sequence[int]): Which of them, in order.

    Attributes:
        skipped (list[str]): Names of images that could not be read, by it
            or by what :meth:`take` took.
    """

    def __init__(
        self, source: Any, names: Sequence[str], indices: Sequence[int]
    ) -> None:
        self.source = source
        self.names = names
        self.indices = list(indices)
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, i: int) -> dict | None:
        """The batch of image ``i``, None if it cannot be read."""
        index = self.indices[i]
        try:
            data = self.source[index]
        except Exception as error:
            # whatever a pipeline raises on a broken file, other images
            # can still calibrate; the file is named and counted
            name = self.names[index]
            if name not in self.skipped:
                self.skipped.append(name)
                print_log(
                    f'calibration image {name} cannot be read, skipped: '
                    f'{type(error).__name__}: {error}',
                    'current',
                    logging.WARNING,
                )
            return None
        return pseudo_collate([data])

    def batches(
        self, start: int = 0, ahead: bool = False
    ) -> Iterator[tuple[int, dict | None]]:
        """Yields index and batch, from image ``start`` on.

        Args:
            start (int): Index of the first image. Defaults to 0.
            ahead (bool): Whether a thread reads the next image while this
                one is used. That helps where a GPU runs the model; a CPU
                would be shared. Defaults to False.
        """
        if not ahead:
            for i in range(start, len(self)):
                yield i, self.load(i)
            return
        with ThreadPoolExecutor(1, 'mmdet_ptq-images') as pool:
            coming = None
            for i in range(start, len(self)):
                batch = coming.result() if coming else self.load(i)
                if i + 1 < len(self):
                    coming = pool.submit(self.load, i + 1)
                yield i, batch

    def first(self) -> dict:
        """The first readable batch.

        Raises:
            CalibrationError: If no image can be read.
        """
        for _, batch in self.batches():
            if batch is not None:
                return batch
        raise CalibrationError(
            f'none of the {len(self)} calibration images can be read: '
            f'{", ".join(self.skipped[:5])} ...'
        )

    def take(self, indices: Sequence[int]) -> 'CalibrationImages':
        """The images at these positions."""
        taken = CalibrationImages(
            self.source, self.names, [self.indices[i] for i in indices]
        )
        # what cannot be read is said once, whoever reads it
        taken.skipped = self.skipped
        return taken


def share_of_rank(
    images: CalibrationImages, rank: int, world_size: int
) -> CalibrationImages:
    """Every ``world_size``-th image: no image twice, none left out."""
    return images.take(range(rank, len(images), world_size))
