# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AP of drawn images."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tools.accuracy import bootstrap
from tools.accuracy.bootstrap import PerImage, interval

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


def reference(truth, found):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluated = COCOeval(coco, coco.loadRes(str(found)), 'bbox')
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated.stats[0]


@pytest.mark.parametrize('seed', [None, 0, 1, 2])
def test_ap_is_that_of_images_written_as_often(tmp_path, seed):
    one = PerImage(*written(tmp_path, 'plain'))
    counts = np.ones(IMAGES, int)
    if seed is not None:
        drawn = np.random.default_rng(seed).integers(0, IMAGES, IMAGES)
        counts = np.bincount(drawn, minlength=IMAGES)
    expected = reference(*written(tmp_path, 'drawn', counts))
    assert one.ap(counts) == pytest.approx(expected, abs=2e-3)
    if seed is None:
        assert one.ap(counts) == pytest.approx(expected, abs=1e-12)


def test_a_method_does_not_differ_from_itself(tmp_path):
    one = PerImage(*written(tmp_path, 'plain'))
    assert interval(one, one, 20, 0) == (0, 0, 0)


def test_one_that_finds_half_is_worse(tmp_path):
    one = PerImage(*written(tmp_path, 'half', keep=0.5))
    other = PerImage(*written(tmp_path, 'plain'))
    found, low, high = interval(one, other, 200, 0)
    assert low < found < high < 0
    assert interval(one, other, 200, 0) == (found, low, high)


def test_the_command(tmp_path, monkeypatch, capsys):
    truth, found = written(tmp_path, 'plain')
    _, half = written(tmp_path, 'half', keep=0.5)
    monkeypatch.setattr(bootstrap, 'files_of', lambda _: dict(val=truth))
    sides = dict(gptq=found, qdrop=half)

    def folder_of(cell, work):
        folder = tmp_path / cell[1]
        if cell[0] != 'retinanet':
            return tmp_path / 'nowhere'
        folder.mkdir(exist_ok=True)
        text = sides[cell[1]].read_text()
        (folder / bootstrap.PREDICTIONS).write_text(text)
        return folder

    monkeypatch.setattr(bootstrap, 'folder_of', folder_of)
    words = ['compensated', 'gptq', 'qdrop', '--drawings', '20']
    words += ['--out', str(tmp_path)]
    assert bootstrap.main(words) == 0
    page = (tmp_path / 'compensated_w4a8_gptq_qdrop.md').read_text()
    (row,) = [line for line in page.splitlines() if '| retinanet' in line]
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert float(cells[1]) > float(cells[2]) > 0
    assert float(cells[3]) == pytest.approx(
        float(cells[1]) - float(cells[2]), abs=2e-3
    )
    assert 'yolof: no predictions of gptq' in capsys.readouterr().out
    monkeypatch.setattr(bootstrap, 'folder_of', lambda *_: tmp_path / 'none')
    with pytest.raises(SystemExit):
        bootstrap.main(words)


def test_a_detector_that_finds_nothing(tmp_path):
    nothing = PerImage(*written(tmp_path, 'nothing', keep=0))
    counts = np.ones(IMAGES)
    assert nothing.images == IMAGES and nothing.ap(counts) == 0
    other = PerImage(*written(tmp_path, 'other'))
    assert interval(other, nothing, 5, 0)[0] == other.ap(counts) > 0
