# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a detector predicted on the images of a test, and what is there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import get_box_tensor
from mmdet.structures.mask import mask2bbox
from torch import Tensor

from ..errors import PTQError

#: detections kept of an image, as many as COCO evaluates
MOST = 100


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one image, in pixels of the image file.

    Attributes:
        corners (np.ndarray): float32 ``[N, 4]``: x1, y1, x2, y2.
        labels (np.ndarray): int64 ``[N]``, from 0.
        scores (np.ndarray): float32 ``[N]``, falling; 1 for objects.
        crowd (np.ndarray): bool ``[N]``, regions that are passed over.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageRow:
    """One image of a test.

    Attributes:
        key (str): Identifies it in two tests of one data set.
        path (str): Of its file, '' if it is not known.
        size (tuple[int, int]): Height and width of the file.
        found (Boxes): The surest predictions.
        truth (Boxes, optional): Objects; None where the test pipeline did
            not load them.
    """

    key: str
    path: str
    size: tuple[int, int]
    found: Boxes
    truth: Boxes | None


def row_of(sample: Any, place: int) -> ImageRow:
    """What is kept of an output of ``test_step``.

    Args:
        sample (DetDataSample): With predictions, in the frame of the file.
        place (int): Of the image in the test, where it has no other name.

    Raises:
        PTQError: If it has no instances.
    """
    if 'pred_instances' not in sample:
        raise PTQError(
            f'outputs of the test ({type(sample).__name__}) have no '
            'pred_instances'
        )
    meta = sample.metainfo
    path = str(meta.get('img_path') or '')
    truth = None
    if 'gt_instances' in sample and 'bboxes' in sample.gt_instances:
        truth = _objects(sample)
    return ImageRow(
        str(meta.get('img_id', path or place)),
        path,
        tuple(int(v) for v in meta['ori_shape'][:2]),
        _surest(sample.pred_instances),
        truth,
    )


def unique(rows: Iterable[ImageRow]) -> list[ImageRow]:
    """Each image once, by key: ranks are given some twice."""
    return list({row.key: row for row in rows}.values())


def _surest(instances: Any) -> Boxes:
    scores = instances.scores.detach().float()
    order = scores.argsort(descending=True, stable=True)[:MOST]
    corners = _corners(instances)[order]
    return Boxes(
        _array(corners, np.float32).reshape(-1, 4),
        _array(instances.labels[order], np.int64),
        _array(scores[order], np.float32),
        np.zeros(len(order), bool),
    )


def _corners(instances: Any) -> Tensor:
    """Boxes; of a detector of masks alone, those around the masks."""
    boxes = get_box_tensor(instances.bboxes).detach().float()
    masks = instances.get('masks')
    flat = (boxes[:, 2:4] <= boxes[:, :2]).any(1)
    if len(boxes) and isinstance(masks, Tensor) and bool(flat.all()):
        return mask2bbox(masks.bool())
    return boxes


def _objects(sample: Any) -> Boxes:
    plain = sample.gt_instances
    groups = [(plain, False)]
    if 'ignored_instances' in sample:
        groups.append((sample.ignored_instances, True))
    found = [(g, c) for g, c in groups if 'bboxes' in g and 'labels' in g]
    corners = [_array(get_box_tensor(g.bboxes), np.float32) for g, _ in found]
    labels = [_array(g.labels, np.int64) for g, _ in found]
    crowd = [
        np.full(len(x), c) for x, (_, c) in zip(labels, found, strict=True)
    ]
    count = sum(map(len, labels))
    return Boxes(
        _joined(corners, np.zeros((0, 4), np.float32)),
        _joined(labels, np.zeros(0, np.int64)),
        np.ones(count, np.float32),
        _joined(crowd, np.zeros(0, bool)),
    )


def _array(values: Any, dtype: type) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    return torch.as_tensor(values).numpy().astype(dtype)


def _joined(parts: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
    full = [part for part in parts if len(part)]
    return np.concatenate(full) if full else empty


def packed(rows: Sequence[ImageRow]) -> dict[str, Any]:
    """Rows as plain types and few tensors, for ``torch.save``."""
    empty = _empty()
    return dict(
        keys=[row.key for row in rows],
        paths=[row.path for row in rows],
        sizes=[list(row.size) for row in rows],
        known=[row.truth is not None for row in rows],
        found=_packed([row.found for row in rows]),
        truth=_packed([row.truth or empty for row in rows]),
    )


def unpacked(saved: dict[str, Any]) -> list[ImageRow]:
    """The rows of :func:`packed`."""
    found, truth = _unpacked(saved['found']), _unpacked(saved['truth'])
    return [
        ImageRow(key, path, tuple(size), *boxes)
        for key, path, size, *boxes in zip(
            saved['keys'],
            saved['paths'],
            saved['sizes'],
            found,
            [
                one if known else None
                for one, known in zip(truth, saved['known'], strict=True)
            ],
            strict=True,
        )
    ]


def _empty() -> Boxes:
    return Boxes(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros(0, np.float32),
        np.zeros(0, bool),
    )


def _packed(parts: Sequence[Boxes]) -> dict[str, Tensor]:
    every = [_empty(), *parts]
    joined = {
        name: torch.from_numpy(
            np.concatenate([getattr(one, name) for one in every])
        )
        for name in _empty().__dict__
    }
    return dict(joined, counts=torch.tensor([len(one) for one in parts]))


def _unpacked(saved: dict[str, Tensor]) -> list[Boxes]:
    counts = saved['counts'].tolist()
    parts = [saved[name].split(counts) for name in _empty().__dict__]
    each = zip(*parts, strict=True)
    return [Boxes(*(t.numpy() for t in one)) for one in each]


def class_name(classes: Sequence[str], label: int) -> str:
    """Name of a class, its number if it has none."""
    return str(classes[label]) if label < len(classes) else str(label)


def as_coco(rows: Sequence[ImageRow], classes: Sequence[str]) -> dict:
    """The objects as a data set of COCO; class k has the id k.

    Args:
        rows (Sequence[ImageRow]): With objects.
        classes (Sequence[str]): Names.
    """
    objects = []
    for i, row in enumerate(rows):
        for k in range(len(row.truth)):
            x1, y1, x2, y2 = row.truth.corners[k].tolist()
            objects.append(
                dict(
                    id=len(objects) + 1,
                    image_id=i,
                    category_id=int(row.truth.labels[k]),
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=int(row.truth.crowd[k]),
                )
            )
    return dict(
        images=[
            dict(id=i, height=row.size[0], width=row.size[1])
            for i, row in enumerate(rows)
        ],
        annotations=objects,
        categories=[dict(id=k, name=n) for k, n in enumerate(classes)],
    )


def as_results(rows: Sequence[ImageRow]) -> list[dict]:
    """The predictions in COCO's result format."""
    return [
        dict(image_id=i, category_id=label, score=score, bbox=box)
        for i, row in enumerate(rows)
        for label, score, box in zip(
            row.found.labels.tolist(),
            row.found.scores.tolist(),
            _widths(row.found.corners).tolist(),
            strict=True,
        )
    ]


def _widths(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
