# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The runner's own checks decide about a row."""

import shutil

import numpy as np
import pytest
import torch

from tools.docs import run_once as once
from tools.docs.examine import empty_row


@pytest.fixture
def config(tiny, tmp_path):
    """Writes a detector's config as a family would have it."""

    def write(name='retinanet', end=''):
        path = tmp_path / 'family.py'
        path.write_text(f"_base_ = r'{tiny.config[name]}'\n{end}\n")
        return path

    return write


def test_run_once(tiny, config, tmp_path):
    row = empty_row(size=[64, 64])
    folder = tmp_path / 'run'
    folder.mkdir()
    shutil.copy(tiny.checkpoint['mask_rcnn'], folder / 'float.pth')
    once.runner_run(config('mask_rcnn'), folder, row)
    # 60 objects an image: predictions, masks among them, were compared
    assert (row['runner'], row['replaced']) == ('yes', '')
    assert row['detected'] == 120


def test_the_class_count_of_the_data_is_checked(tiny, config, tmp_path):
    path = config(
        end="test_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', "
        "'b', 'c', 'd'))))"
    )
    with pytest.raises(once.RunError, match='has 4 classes, the model has'):
        once.run_once(
            path, tiny.checkpoint['retinanet'], tmp_path / 'run', (64, 64)
        )


@pytest.mark.parametrize('what', ['metrics', 'predictions'])
def test_another_artefact_is_told(tiny, config, tmp_path, monkeypatch, what):
    test_again = once.reload

    def reload(path, artefact):
        metrics = test_again(path, artefact)
        if what == 'metrics':
            return dict(metrics, more=1.0)
        saved = artefact.parent.parent / 'predictions.pkl'
        saved.write_bytes(
            saved.read_bytes().replace(b'ori_shape', b'ori_shaqe')
        )
        return metrics

    monkeypatch.setattr(once, 'reload', reload)
    match = dict(metrics="'more': 1.0", predictions='predicts other values')
    with pytest.raises(once.RunError, match=match[what]):
        once.run_once(
            config(), tiny.checkpoint['retinanet'], tmp_path / 'run', (64, 64)
        )


def test_errors_are_cells(tmp_path):
    def fails(error):
        def run(*_):
            raise error

        row = empty_row(size=[8, 8])
        once.runner_run(tmp_path / 'x.py', tmp_path, row, run)
        assert row['detected'] is None
        return row['runner']

    assert fails(once.RunError(f'no {tmp_path}/x.pth\n there')) == (
        'no x.pth there'
    )
    assert fails(ValueError('odd')).startswith('ValueError at test_run_once')


def test_detections():
    box = dict(pred_instances=dict(scores=torch.ones(3)))
    assert once.detections([box, box]) == 6
    empty = dict(pred_instances=dict(scores=torch.ones(0)))
    assert once.detections([empty]) == 0
    assert once.detections([dict(pred_panoptic_seg={})]) is None


def test_same():
    def made():
        return [dict(a=torch.ones(2), b=(np.ones(2), 'x'), c=[1, None])]

    assert once.same(made(), made())
    for change in (
        dict(a=torch.zeros(2)),
        dict(a=torch.ones(3)),
        dict(b=(np.zeros(2), 'x')),
        dict(c=[1]),
        dict(c=[1.0, None]),
        dict(d=1),
    ):
        assert not once.same(made(), [{**made()[0], **change}])
