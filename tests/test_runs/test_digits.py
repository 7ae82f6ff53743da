# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The embedded detectors, quantized: real weights on real images."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import from_config
from mmdet_ptq.engine.checkpoint import read_checkpoint
from mmdet_ptq.engine.float_weights import load_float_weights
from mmdet_ptq.quant_cfg import Calibration
from mmdet_ptq.testing import cosine, random_detector, raw_outputs

ROOT = Path(__file__).parents[2]
CHECKPOINTS = sorted((ROOT / 'demo' / 'checkpoints').glob('*.pth'))


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    if not (ROOT / 'data' / 'digits' / 'val.json').is_file():
        pytest.skip('run `make data` first')


def test_all_six_are_shipped():
    configs = {p.stem for p in (ROOT / 'configs' / 'digits').glob('*.py')}
    assert {p.stem for p in CHECKPOINTS} == configs and len(configs) == 6
    assert all(p.stat().st_size <= 8e6 for p in CHECKPOINTS)


@pytest.mark.parametrize('path', CHECKPOINTS, ids=lambda p: p.stem)
def test_w8a8_follows_float_and_beats_minmax_at_w4a4(path):
    cfg = Config.fromfile(f'configs/digits/{path.stem}.py')
    model = random_detector(f'configs/digits/{path.stem}.py')
    load_float_weights(model, read_checkpoint(path), path)
    images = from_config(cfg, Calibration(num_samples=4))
    data = [batch for _, batch in images.batches()]
    example = from_config(
        cfg, Calibration(num_samples=1, source='test')
    ).first()
    memory: dict = {}
    expected = raw_outputs(model, example, memory)
    found = {}
    for recipe, bits in (
        ('uniform', 'w8a8'),
        ('uniform', 'w4a4'),
        ('minmax', 'w4a4'),
    ):
        twin = copy.deepcopy(model)
        session = quantize_detector(
            twin, copy.deepcopy(data), dict(recipe=recipe, bits=bits)
        )
        out = raw_outputs(twin, example, memory)
        found[recipe, bits] = cosine(expected, out)
        assert all(torch.isfinite(t).all() for t in out)
        left = [p for p in session.plan.layers.values() if p.why_float]
        assert all('@prediction' in p.why_float for p in left)
        assert not session.plan.uncovered
    assert found['uniform', 'w8a8'] > 0.98
    assert found['uniform', 'w4a4'] > found['minmax', 'w4a4']
