# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The sweep survives what single families do, and compares fairly."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from mmdet_ptq.testing import Selections, cosine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def sweep():
    spec = importlib.util.spec_from_file_location(
        'sweep_configs', ROOT / 'tools' / 'sweep_configs.py'
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules['sweep_configs'] = module
    spec.loader.exec_module(module)
    return module


def test_families(sweep):
    found = sweep.families()
    assert len(found) > 80
    assert found['yolox'].name.startswith('yolox_nano')
    assert 'r18' in found['retinanet'].name
    assert '_base_' not in found


def test_a_crash_and_a_hang_are_rows(sweep, monkeypatch):
    monkeypatch.setattr(sweep, 'examine', lambda *_: os._exit(3))
    row = sweep.in_child(Path('x.py'), (8, 8), 20)
    assert 'exit code 3' in row['why'] and not row['quantized']
    monkeypatch.setattr(sweep, 'examine', lambda *_: time.sleep(60))
    row = sweep.in_child(Path('x.py'), (8, 8), 0.2)
    assert 'no result within' in row['why']


def test_examine_reports_where_a_family_fails(sweep, tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text("model = dict(type='NoSuchDetector')")
    row = sweep.examine(path, (8, 8))
    assert not row['built'] and 'NoSuchDetector' in row['why']


def test_cosine():
    a = [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])]
    b = [torch.tensor([6.0, 8.0]), torch.tensor([1.0, 1.0])]
    assert cosine(a, b) == pytest.approx(0.5**0.5)
    assert cosine(a, b[:1]) == -1
    assert cosine([torch.zeros(2)], [torch.zeros(2)]) == 1


def test_selections_replays_choices_on_other_numbers():
    x, y = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([5.0, 4.0, 6.0])
    with Selections() as first:
        assert x.topk(2)[1].tolist() == [1, 2]
        assert torch.argsort(x).tolist() == [0, 2, 1]
    with Selections(first.made):
        values, index = y.topk(2)
        assert index.tolist() == [1, 2] and values.tolist() == [4, 6]
        assert torch.argsort(y).tolist() == [0, 2, 1]
    assert y.topk(2)[1].tolist() == [2, 0]


def test_markdown_counts(sweep):
    row = dict(
        config='a.py',
        built=True,
        float_ok=True,
        quantized=True,
        predicts=True,
        layers=3,
        left_float={'why': 2},
        cosine=0.995,
        seconds=1.0,
        why='',
    )
    rows = {
        'good': row,
        'bad': dict(row, cosine=0.5),
        'no': dict(row, float_ok=False),
    }
    text = sweep.to_markdown(rows, 7, 'cmd', (8, 8))
    assert (
        '3 of 7 families were run. **2** build' in text
        and '**1** of these (50.0 %)' in text
    )
