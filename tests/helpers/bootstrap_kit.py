# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A small data set with detections, in files or not."""

import json

import numpy as np

IMAGES, CLASSES = 12, 3


def dataset(times=None):
    """Boxes on images, each image as often as it is wanted."""
    rng = np.random.default_rng(0)
    images, truths, found = [], [], []
    for i in range(IMAGES):
        boxes = rng.uniform(5, 60, (4, 4)).round(1)
        kinds = rng.integers(1, CLASSES + 1, 4)
        crowd = rng.random(4) < 0.1
        shift = rng.normal(0, 4, (4, 4))
        scores = rng.random(6)
        extra = rng.uniform(5, 60, (2, 4))
        for _ in range(1 if times is None else times[i]):
            image = len(images) + 1
            images.append(dict(id=image, width=200, height=200))
            for box, kind, many in zip(boxes, kinds, crowd, strict=True):
                truths.append(
                    dict(
                        id=len(truths) + 1,
                        image_id=image,
                        category_id=int(kind),
                        bbox=box.tolist(),
                        area=float(box[2] * box[3]),
                        iscrowd=int(many),
                    )
                )
            guesses = [*(boxes + shift), *extra]
            for box, kind, score in zip(
                guesses, [*kinds, 1, 2], scores, strict=True
            ):
                found.append(
                    dict(
                        image_id=image,
                        category_id=int(kind),
                        bbox=np.maximum(box, 1).tolist(),
                        score=float(score),
                    )
                )
    classes = [dict(id=k + 1, name=str(k)) for k in range(CLASSES)]
    return (
        dict(images=images, annotations=truths, categories=classes),
        found,
    )


def written(folder, name, times=None, keep=1.0):
    truth, found = dataset(times)
    found = found[: int(len(found) * keep)]
    paths = folder / f'{name}_truth.json', folder / f'{name}.json'
    for path, value in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(value))
    return paths
