# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Loop, hooks and result file by themselves."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmdet_ptq.calibration import CalibrationImages
from mmdet_ptq.engine import CalibLoop
from mmdet_ptq.engine import hooks as hooks_module
from mmdet_ptq.engine.checkpoint import load_float_weights, sha256
from mmdet_ptq.engine.hooks import CalibrationHook
from mmdet_ptq.engine.result import _float_part, _row
from mmdet_ptq.engine.survey import uncovered_modules


class Broken:
    """Five images of which the first and the fourth cannot be read."""

    def __getitem__(self, i):
        if i in (0, 3):
            raise OSError('broken')
        return dict(inputs=i)


class Runner:
    """Notes what it is asked for."""

    def __init__(self):
        self.said, self.model = [], self

    def call_hook(self, name, **args):
        self.said.append((name, *args.values()))

    def test_step(self, batch):
        self.said.append(batch['inputs'][0])

    def data_preprocessor(self, batch, training):
        assert training is False
        return batch

    def __call__(self, inputs, mode):
        self.said.append((mode, inputs[0]))


@pytest.fixture
def loop():
    everyone = CalibrationImages(Broken(), list('abcde'), range(5))
    return CalibLoop(Runner(), everyone.take([1, 3, 4]), everyone)


def test_loop_goes_on_where_it_stopped(loop):
    after = []
    loop.predict(1, after.append)
    assert loop.runner.said == [
        ('before_calib', 3),
        ('before_calib_iter', 1),
        ('after_calib_iter', 1),
        ('before_calib_iter', 2),
        4,
        ('after_calib_iter', 2),
        ('after_calib',),
    ]
    assert after == [1, 2]
    assert loop.skipped == ['d'] and loop.total == 3
    assert loop.batch(0) == dict(inputs=[1]) and loop.batch(1) is None


def test_raw_images_are_those_of_all_ranks(loop):
    loop.run_raw(2)
    assert loop.runner.said == [('tensor', 1), ('tensor', 2)]


def test_progress_is_saved_now_and_then(monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(hooks_module.time, 'monotonic', lambda: now[0])
    hook = CalibrationHook(save_interval=2)
    session = SimpleNamespace(save=lambda: saved.append(now[0]))
    for time in (0.5, 1.9, 2.0, 3.9, 4.5, 6.4, 9.0):
        now[0] = time
        hook.after_calib_iter(SimpleNamespace(session=session), 0)
    assert saved == [2.0, 4.5, 9.0]
    with pytest.raises(ValueError, match='save_interval'):
        CalibrationHook(save_interval=-1)


def test_rows_of_the_table():
    assert _row('mAP', 0.5, 0.25, 3) == ('mAP', '0.500', '0.250', '-0.250')
    assert _row('mAP', 0.1, 0.3, 2) == ('mAP', '0.10', '0.30', '+0.20')
    assert _row('mAP', None, 0.3, 1) == ('mAP', '-', '0.3', '-')


def test_float_metrics_of_an_earlier_run(tmp_path):
    path = tmp_path / 'result.json'
    assert _float_part(path, 'a') is None
    metrics = dict(mAP=0.5)
    old = dict(fingerprint='a', float=metrics)
    old['seconds'] = {'float evaluation': 3.5}
    path.write_text(json.dumps(old))
    assert _float_part(path, 'a') == (metrics, 3.5)
    assert _float_part(path, 'b') is None
    for broken in (dict(old, float={}), dict(fingerprint='a'), [], 'what'):
        path.write_text(json.dumps(broken))
        assert _float_part(path, 'a') is None
    path.write_text('{')
    assert _float_part(path, 'a') is None


def test_sha256_of_several_blocks(tmp_path):
    data = bytes(range(256)) * 10000
    (tmp_path / 'file').write_bytes(data)
    assert sha256(tmp_path / 'file') == hashlib.sha256(data).hexdigest()


def test_weights_of_a_parallel_model():
    model = nn.Linear(3, 2)
    state = {
        f'module.{n}': torch.randn_like(t)
        for n, t in model.state_dict().items()
    }
    load_float_weights(model, dict(state_dict=state), 'a.pth')
    assert torch.equal(model.weight, state['module.weight'])


def test_what_no_twin_covers():
    model = nn.Sequential(
        nn.Conv3d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Embedding(3, 3)
    )
    model.append(nn.BatchNorm2d(2))
    assert uncovered_modules(model) == {'0': 'no twin for Conv3d'}
