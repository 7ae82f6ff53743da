# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What images look like, and what of it speaks against calibrating."""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from .data import CalibrationImages
from .feed import Feed

#: below it a note says that there are few calibration images
FEW = 8
#: how many images are looked at, at most
LOOKED_AT = 32
#: how many standard errors two sets of images may differ by
LIMIT = 4.8


def notes_on(
    feed: Feed, total: int, test: CalibrationImages | None = None
) -> list[str]:
    """Looks at calibration images before they are used, and warns.

    Args:
        feed (Feed): The images of all ranks; ``LOOKED_AT`` batches at most
            are read.
        total (int): How many images calibrate, if all can be read.
        test (CalibrationImages, optional): Images as the detector will get
            them, to compare with.

    Returns:
        list[str]: A sentence for each doubt.
    """
    images = appearance(feed.batch(i) for i in spread(feed.total))
    notes = doubts(images, total - len(feed.skipped))
    if test is not None and len(images) >= FEW:
        seen = appearance(test.load(i) for i in spread(len(test)))
        strange = strangeness(images, seen)
        notes += [strange] if strange else []
    for note in notes:
        print_log(note, 'current', logging.WARNING)
    return notes


def appearance(batches: Iterable[dict | None]) -> Tensor:
    """What each image looks like to the detector's pipeline.

    Args:
        batches (Iterable[dict | None]): As ``model.test_step`` takes them,
            before the preprocessor, whose mean and deviation change all
            images alike.

    Returns:
        Tensor: A row for each image: mean of each channel, deviation of
        each channel, mean absolute difference of neighbouring pixels, all in
        the pixels' units, and log2 of the number of pixels. Shape (images,
        2 * channels + 2); no row where a batch is None or its inputs are no
        images.
    """
    rows = [
        _row(image)
        for batch in batches
        if batch is not None
        for image in _images(batch['inputs'])
    ]
    return torch.stack(rows) if rows else torch.zeros(0, 0)


def _images(inputs: Any) -> list[Tensor]:
    found = list(inputs) if isinstance(inputs, list | tuple | Tensor) else []
    found = [x for x in found if isinstance(x, Tensor) and x.dim() == 3]
    return [x for x in found if x.numel()]


def _row(image: Tensor) -> Tensor:
    image = image.detach().float()
    # around one pixel, so that the deviation of a plain colour is exactly 0;
    # torch.std takes several times as long
    first = image[:, :1, :1]
    flat = (image - first).flatten(1)
    mean = flat.mean(1, keepdim=True)
    std = (flat - mean).square_().mean(1).sqrt()
    edges = (image.diff(dim=1).abs().mean(), image.diff(dim=2).abs().mean())
    edge = torch.stack(edges).nan_to_num(0.0).mean()
    pixels = edge.new_tensor(float(flat.shape[1])).log2()
    last = torch.stack([edge, pixels])
    mean = (mean + first.flatten(1))[:, 0]
    return torch.cat([mean, std, last]).double().cpu()


def doubts(images: Tensor, total: int) -> list[str]:
    """What images alone say against calibrating on them.

    Args:
        images (Tensor): From :func:`appearance`.
        total (int): How many images calibrate.

    Returns:
        list[str]: A sentence for each doubt.
    """
    found = []
    if total < FEW:
        found.append(
            f'only {total} calibration images: ranges and what is learned '
            'rest on few samples, 32 is the default'
        )
    if not len(images):
        return found
    channels = _channels(images)
    if not images[:, channels : 2 * channels].any():
        found.append(
            'the calibration images are of one colour each: nothing can be '
            'calibrated on them'
        )
    elif len(images) > 1 and bool((images == images[0]).all()):
        found.append(
            f'{len(images)} calibration images are all the same: they count '
            'as one'
        )
    return found


def strangeness(images: Tensor, test: Tensor) -> str | None:
    """Whether calibration images look unlike those of the test.

    Compared are means over images of each column of :func:`appearance`, by
    their difference in standard errors. The limit is from measurements, 2000
    draws each. Of 32 training and 32 test images of one set (digits, COCO)
    the largest is 4.5, of COCO and digits at one size 4.8 to 11.8, at their
    own sizes 18 and more. With 16 and 16 images one draw in a thousand of one
    set is above the limit, and three of four of COCO and digits at one size.

    Args:
        images (Tensor): Of the calibration images.
        test (Tensor): Of images of the test pipeline.

    Returns:
        str, optional: A sentence, None if they look alike, or if fewer than
        ``FEW`` of either are there to tell.
    """
    if min(len(images), len(test)) < FEW or images.shape[1] != test.shape[1]:
        return None
    a, b = images.mean(0), test.mean(0)
    error = (images.var(0) / len(images) + test.var(0) / len(test)).sqrt()
    error = error.clamp(min=1e-3)
    # images of one size each: a factor of 1.4 in pixels is no strangeness
    error[-1].clamp_(min=0.1)
    far = (a - b).abs() / error
    worst = int(far.argmax())
    if not far[worst] > LIMIT:
        return None
    names = [
        f'the {what} in channel {i} is'
        for what in ('mean', 'deviation')
        for i in range(_channels(images))
    ]
    names += ['neighbouring pixels differ by', 'log2 of the pixels is']
    name = names[worst]
    return (
        'the calibration images look unlike the test images: on average '
        f'{name} {a[worst]:.3g}, in the test {b[worst]:.3g} '
        f'({far[worst]:.1f} standard errors apart); '
        'calibrate on images as the detector will get them'
    )


def _channels(rows: Tensor) -> int:
    return (rows.shape[1] - 2) // 2


def spread(total: int) -> list[int]:
    """Evenly spaced numbers of at most ``LOOKED_AT`` out of ``total``."""
    count = min(total, LOOKED_AT)
    return [math.floor(i * total / count) for i in range(count)]
