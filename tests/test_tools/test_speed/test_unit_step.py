# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Steps of one unit are timed as they are."""

import json

import pytest

from mmdet_ptq.passes.reconstruct.trainer import Trainer
from tools.speed import unit_step

UNIT = 'backbone.layer1.1'


@pytest.mark.parametrize('batch', range(1, 40))
def test_a_batch_is_left_to_learn_from(batch):
    images = unit_step.images_for(batch)
    # as the trainer holds out: each eighth, at least one
    assert images - max(1, images // 8) >= batch
    assert images <= 1.2 * batch + 1


def test_timing_changes_nothing(visit, monkeypatch):
    found = []
    for trainer in (unit_step.SteppedTrainer, Trainer):
        found.append(visit(trainer, 8))
    for one, other in zip(*found, strict=True):
        assert len(one.steps) == 7 and min(one.steps) > 0
        for times in (one.floats, one.detector):
            assert len(times) == unit_step.FLOATS and min(times) > 0
        timed = {k: vars(one)[k] for k in ('steps', 'floats', 'detector')}
        assert vars(one) == dict(vars(other), **timed, seconds=one.seconds)


def test_end_to_end(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ['--config', str(tiny.config['retinanet']), '--size', '64', '96']
    words += ['--iters', '8', '--batches', '1', '2', '--out', 'found.json']
    assert unit_step.main(words) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found['machine'] and found['date']
    assert found['settings']['size'] == [64, 96]
    assert set(found['steps']) == {'1', '2'}
    for one in found['steps'].values():
        step = one['step_ms']
        assert step > 0 and one['float_unit_ms'] > 0
        assert one['over_float'] == pytest.approx(
            step / one['float_unit_ms'], rel=0.05
        )
        assert one['hours'] == pytest.approx(step * 66 / 3600, abs=0.01)
        # the detector holds the unit
        assert one['float_detector_ms'] > one['float_unit_ms']
        assert 'peak_gpu_mb' not in one


def test_a_unit_that_is_not_there(tiny):
    with pytest.raises(ValueError, match=f'no unit x; there are .*{UNIT}'):
        unit_step.measure(
            str(tiny.config['retinanet']), 'x', (64, 64), 1, 7, 'cpu', '1GiB'
        )


def test_too_few_steps(capsys):
    with pytest.raises(SystemExit):
        unit_step.main(['--iters', '6'])
    assert 'the first 5 do not count' in capsys.readouterr().err
