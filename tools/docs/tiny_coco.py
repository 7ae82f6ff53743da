# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A data set of a few noise images in COCO's format, made in a moment."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.fileio import dump

ANNOTATIONS = 'annotations.json'
IMAGES = 'images/'
PROPOSALS = 'proposals.pkl'


def make_tiny_coco(
    folder: Path, classes: Sequence[str], size: tuple[int, int], count: int = 2
) -> None:
    """Writes noise images with boxes, masks and proposals.

    Args:
        folder (Path): Where to; gets :data:`ANNOTATIONS`, :data:`IMAGES` and
            :data:`PROPOSALS`.
        classes (Sequence[str]): Names; the first, the last and the middle
            one are annotated in every image.
        size (tuple[int, int]): Height and width of the images in pixels.
        count (int): How many images. Defaults to 2.
    """
    height, width = size
    rng = np.random.default_rng(0)
    (folder / IMAGES).mkdir(parents=True)
    images, annotations, proposals = [], [], {}
    for i in range(count):
        name = f'{i}.png'
        image = rng.integers(60, 190, (height, width, 3), dtype=np.uint8)
        boxes = _boxes(rng, 64, size)
        for label, (x, y, w, h) in zip(
            (0, len(classes) // 2, len(classes) - 1), boxes, strict=False
        ):
            image[y : y + h, x : x + w] //= 3
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=label + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
        cv2.imwrite(str(folder / IMAGES / name), image)
        images.append(dict(id=i, file_name=name, width=width, height=height))
        corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
        proposals[IMAGES + name] = dict(
            bboxes=np.array(corners, np.float32),
            scores=np.ones(len(boxes), np.float32),
        )
    (folder / ANNOTATIONS).write_text(
        json.dumps(
            dict(
                images=images,
                annotations=annotations,
                categories=[
                    dict(id=i + 1, name=n) for i, n in enumerate(classes)
                ],
            )
        )
    )
    dump(proposals, folder / PROPOSALS)


def _boxes(
    rng: np.random.Generator, count: int, size: tuple[int, int]
) -> list[list[int]]:
    """Boxes (x, y, width, height) inside an image, in pixels."""
    height, width = size
    return [
        [int(v) for v in (x * (width - w), y * (height - h), w, h)]
        for x, y, w, h in zip(
            rng.random(count),
            rng.random(count),
            rng.integers(width // 8, width // 2, count),
            rng.integers(height // 8, height // 2, count),
            strict=True,
        )
    ]
