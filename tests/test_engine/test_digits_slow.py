# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The promises of saving, resuming and ranks, on the embedded detectors.

Everything runs in processes of its own, as a user would start it.
"""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mmdet
import pytest
import torch
from test_reload import measured, same

ROOT = Path(__file__).parents[2]
TEST = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'
DETECTORS = sorted(p.stem for p in (ROOT / 'configs' / 'digits').glob('*.py'))
# a test of two images, where only the artefact is wanted
SHORT = ['--cfg-options', 'test_dataloader.dataset.indices=2']

pytestmark = pytest.mark.slow


def start(*command, **extra):
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS='1', **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said = process.communicate()[0]
    assert process.returncode == 0, said[-3000:]
    return said


def ptq(name, work, *options):
    return start(
        sys.executable,
        ROOT / 'tools' / 'ptq.py',
        ROOT / 'configs' / 'digits' / f'{name}.py',
        ROOT / 'demo' / 'checkpoints' / f'{name}.pth',
        '--work-dir',
        work,
        '--device',
        'cpu',
        '--no-float-eval',
        *options,
    )


def artefact(work):
    return (work / 'quantized.pth').read_bytes()


@pytest.mark.parametrize('name', DETECTORS)
def test_mmdet_tests_the_artefact(name, tmp_path):
    """Quantized and tested, then loaded and tested: the same bits."""
    config = tmp_path / 'with_quant.py'
    config.write_text(
        f"_base_ = r'{ROOT / 'configs' / 'digits' / name}.py'\n"
        "custom_imports = dict(imports=['mmdet_ptq'])\n"
        "runner_type = 'PTQRunner'\n"
        "quant_cfg = dict(recipe='uniform', bits='w8a8')\n"
    )
    checkpoint = ROOT / 'demo' / 'checkpoints' / f'{name}.pth'
    found = []
    for step in ('quantize', 'reload'):
        work, out = tmp_path / step, tmp_path / f'{step}.pkl'
        finish(
            start(
                sys.executable,
                TEST,
                config,
                checkpoint,
                '--work-dir',
                work,
                '--out',
                out,
            )
        )
        metrics = json.loads(next(work.glob('*/*.json')).read_text())
        found.append((measured(metrics), pickle.loads(out.read_bytes())))
        checkpoint = tmp_path / 'quantize' / 'quantized.pth'
    (metrics, predictions), (again, reloaded) = found
    assert metrics == again and metrics['coco/bbox_mAP'] > 0.3
    assert len(predictions) == 320 and same(predictions, reloaded)
    # the same run twice
    finish(ptq(name, tmp_path / 'twice', *SHORT))
    assert artefact(tmp_path / 'twice') == artefact(tmp_path / 'quantize')
    print(name, metrics)


def test_kill_and_resume(tmp_path):
    whole, work = tmp_path / 'whole', tmp_path / 'killed'
    finish(ptq('retinanet_digits', whole, *SHORT))
    process = ptq('retinanet_digits', work, *SHORT)
    store = work / 'ptq_resume_0.pth'
    deadline = time.monotonic() + 300
    while not store.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    images = torch.load(store, weights_only=True)['state']['images']
    assert 0 < images < 32 and not (work / 'quantized.pth').exists()
    finish(ptq('retinanet_digits', work, '--resume', *SHORT))
    assert artefact(work) == artefact(whole)
    print('killed after', images, 'of 32 images')


@pytest.mark.parametrize('recipe', ['minmax', 'uniform'])
def test_two_processes(tmp_path, recipe):
    one, two = tmp_path / 'one', tmp_path / 'two'
    options = ['--recipe', recipe, '--bits', 'w4a4']
    finish(ptq('retinanet_digits', one, *options))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), '/usr/bin:/bin'])
    said = finish(
        start(
            'bash',
            ROOT / 'tools' / 'dist_ptq.sh',
            ROOT / 'configs' / 'digits' / 'retinanet_digits.py',
            ROOT / 'demo' / 'checkpoints' / 'retinanet_digits.pth',
            '2',
            '--work-dir',
            two,
            '--device',
            'cpu',
            '--no-float-eval',
            *options,
            PATH=path,
            PORT=str(port),
        )
    )
    assert 'parameters (MB)' in said
    assert artefact(one) == artefact(two)
    ours, theirs = (
        json.loads((w / 'ptq_result.json').read_text())['quantized']
        for w in (one, two)
    )
    assert ours == theirs
    print(recipe, ours)
