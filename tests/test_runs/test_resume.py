# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Whatever stops a run, ``--resume`` ends it as if nothing had been."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.runner import TestLoop as MMEngineTestLoop

from mmdet_ptq.calibration import CalibrationImages
from mmdet_ptq.passes import BasePass
from mmdet_ptq.registry import PASSES

# the command, standing still before calibration image number 3; one image
# is read to check quant_cfg and for the survey, and the six are looked at
STUCK = """
import signal, sys, time
# a shell starts background jobs with Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from mmdet_ptq.calibration import CalibrationImages
load, count = CalibrationImages.load, [0]
def stuck(self, i):
    count[0] += 1
    if count[0] > 1 + 6 + 3:
        time.sleep(300)
    return load(self, i)
CalibrationImages.load = stuck
from mmdet_ptq.cli import main
sys.exit(main(['quantize', *sys.argv[1:]]))
"""


@pytest.fixture
def loads(monkeypatch):
    """Counts the calibration images that are read."""
    found = []
    load = CalibrationImages.load

    def counted(self, i):
        found.append(i)
        return load(self, i)

    monkeypatch.setattr(CalibrationImages, 'load', counted)
    return found


@pytest.fixture
def tests(monkeypatch):
    """Counts the runs of the test loop; can stop one as Ctrl-C would."""
    found = dict(runs=0, stop_at=None)
    run = MMEngineTestLoop.run

    def counted(self):
        found['runs'] += 1
        if found['runs'] == found['stop_at']:
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(MMEngineTestLoop, 'run', counted)
    return found


def images_done(path):
    try:
        return torch.load(path, weights_only=True)['state']['images']
    except (OSError, RuntimeError, KeyError):
        return 0


@pytest.mark.parametrize(
    'how',
    [
        signal.SIGKILL,
        # test_interrupt has Ctrl-C without a process of its own
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_stop_in_calibration(
    ptq, tiny, tmp_path, environment, loads, tests, how
):
    work = tmp_path / 'stopped'
    options = ['--device', 'cpu', '--calib-num', '6']
    with subprocess.Popen(
        [
            sys.executable,
            '-c',
            STUCK,
            str(tiny.config['retinanet']),
            str(tiny.checkpoint['retinanet']),
            '--work-dir',
            str(work),
            *options,
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        resume_file = work / 'ptq_resume_0.pth'
        while images_done(resume_file) < 3:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(how)
        said = process.communicate()[1]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert '--resume' in said
        assert 'Traceback' not in said
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (work / 'quantized.pth').exists()
    float_metrics = json.loads((work / 'ptq_result.json').read_text())['float']

    resumed = ptq('--calib-num', 6, '--resume', work=work)
    assert resumed.code == 0
    # survey, look, what was left, and the report's layers
    assert len(loads) == 1 + 6 + 3 + 4
    assert tests['runs'] == 1  # the float metrics are taken over
    assert resumed.result['float'] == float_metrics
    assert not resume_file.exists()

    whole = ptq('--calib-num', 6, work=tmp_path / 'whole')
    assert resumed.digest == whole.digest
    assert resumed.result['quantized'] == whole.result['quantized']
    assert resumed.result['float'] == whole.result['float']


def test_same_run_same_bytes(ptq, tmp_path):
    first = ptq('--no-float-eval', model='mask_rcnn')
    second = ptq('--no-float-eval', model='mask_rcnn', work=tmp_path / 'b')
    assert first.digest == second.digest


def test_stop_in_the_last_test(ptq, loads, tests, tmp_path):
    """Calibration is over: nothing is calibrated again."""
    whole = ptq('--calib-num', 4, work=tmp_path / 'whole')
    tests.update(runs=0, stop_at=2)
    stopped = ptq('--calib-num', 4)
    assert stopped.code == 130
    tests.update(runs=0, stop_at=None)
    loads.clear()
    resumed = ptq('--calib-num', 4, '--resume')
    assert len(loads) == 1 + 4 + 4
    assert tests['runs'] == 1
    assert resumed.digest == whole.digest
    assert resumed.result['quantized'] == whole.result['quantized']


@pytest.fixture
def dropping():
    """A pass that replans: it takes one quantizer off and notes it."""

    class DropOne(BasePass):
        def run(self, session):
            for name, port in list(session.plan.groups[-1]):
                session.replace(name, port, None)
            session.notes.append('dropped one')
            if stop:
                stop.pop()
                session.save()
                raise KeyboardInterrupt

    stop = []
    PASSES.register_module(module=DropOne)
    yield stop
    PASSES.module_dict.pop('DropOne')


@pytest.mark.parametrize('at', ['next pass', 'test'])
def test_replanned(ptq, tiny, loads, tests, tmp_path, dropping, at):
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = r'{tiny.config['retinanet']}'\n"
        "quant_cfg = dict(recipe='minmax', bits='w8a8', passes=["
        "dict(type='FoldBatchNorm'), dict(type='Observe'), "
        "dict(type='SetRanges'), dict(type='DropOne')], "
        'calibration=dict(num_samples=3))\n'
    )
    whole = ptq('--no-float-eval', config=config, work=tmp_path / 'whole')
    if at == 'test':
        tests.update(runs=0, stop_at=1)
    else:
        dropping.append(True)
    assert ptq('--no-float-eval', config=config).code == 130
    tests.update(stop_at=None)
    loads.clear()
    resumed = ptq('--no-float-eval', '--resume', config=config)
    assert len(loads) == 1 + 3 + 3
    assert resumed.code == 0
    assert resumed.digest == whole.digest
    assert resumed.result['notes'] == whole.result['notes']
    assert [note.split(':')[0] for note in whole.result['notes']] == [
        'dropped one',
        'only 3 calibration images',
    ]


def test_other_settings_are_not_resumed(ptq, loads, tests):
    """Neither statistics nor float metrics of another question count."""
    tests.update(stop_at=2)
    assert ptq('--calib-num', 3, '--recipe', 'minmax').code == 130
    tests.update(runs=0, stop_at=None)
    loads.clear()
    run = ptq(
        '--calib-num', 3, '--recipe', 'minmax', '--bits', 'w4a4', '--resume'
    )
    assert run.code == 0
    assert tests['runs'] == 2
    assert 'nothing to resume' in run.log
    assert len(loads) == 1 + 3 + 3 + 3
    tests.update(runs=0)
    again = ptq(
        '--calib-num',
        3,
        '--recipe',
        'minmax',
        '--bits',
        'w4a4',
        '--resume',
        '--cfg-options',
        'test_evaluator.classwise=True',
    )
    assert again.code == 0
    assert tests['runs'] == 2


def test_broken_resume_file(ptq, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'ptq_resume_0.pth').write_text('what')
    run = ptq('--no-float-eval', '--resume')
    assert run.code == 1
    assert 'ptq_resume_0.pth' in run.err
    assert 'without --resume' in run.err
