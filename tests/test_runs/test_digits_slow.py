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
from outcomes import measured, same

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


def ptq(name, work, *options, config=None):
    return start(
        sys.executable,
        ROOT / 'tools' / 'ptq.py',
        config or ROOT / 'configs' / 'digits' / f'{name}.py',
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


def images_in(store):
    """How many images of the running pass are kept."""
    if not store.exists():
        return 0
    return (
        torch.load(store, weights_only=True).get('state', {}).get('images', 0)
    )


def test_kill_and_resume(tmp_path):
    whole, work = tmp_path / 'whole', tmp_path / 'killed'
    finish(ptq('retinanet_digits', whole, *SHORT))
    process = ptq('retinanet_digits', work, *SHORT)
    store = work / 'ptq_resume_0.pth'
    deadline = time.monotonic() + 300
    # a pass without images is kept too
    while not images_in(store):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    images = images_in(store)
    assert 0 < images < 32 and not (work / 'quantized.pth').exists()
    finish(ptq('retinanet_digits', work, '--resume', *SHORT))
    assert artefact(work) == artefact(whole)
    print('killed after', images, 'of 32 images')


@pytest.mark.parametrize('recipe', ['minmax', 'uniform'])
def test_two_processes(tmp_path, recipe):
    one, two = tmp_path / 'one', tmp_path / 'two'
    options = ['--recipe', recipe, '--bits', 'w4a4']
    finish(ptq('retinanet_digits', one, *options))
    said = finish(on_two_ranks(two, *options))
    assert 'parameters (MB)' in said
    assert artefact(one) == artefact(two)
    ours, theirs = (
        json.loads((w / 'ptq_result.json').read_text())['quantized']
        for w in (one, two)
    )
    assert ours == theirs
    print(recipe, ours)


def on_two_ranks(work, *options, config=None):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), '/usr/bin:/bin'])
    return start(
        'bash',
        ROOT / 'tools' / 'dist_ptq.sh',
        config or ROOT / 'configs' / 'digits' / 'retinanet_digits.py',
        ROOT / 'demo' / 'checkpoints' / 'retinanet_digits.pth',
        '2',
        '--work-dir',
        work,
        '--device',
        'cpu',
        '--no-float-eval',
        *options,
        PATH=path,
        PORT=str(port),
    )


@pytest.fixture
def short(tmp_path):
    """Writes a config with a few steps of a reconstruction at four bits."""

    def write(recipe, batch, iters=4):
        path = tmp_path / f'{recipe}_{batch}.py'
        base = ROOT / 'configs' / 'digits' / 'retinanet_digits.py'
        path.write_text(
            f"_base_ = r'{base}'\n"
            f"quant_cfg = dict(recipe='{recipe}', bits='w4a4',\n"
            '    pass_args=dict(Reconstruct=dict(\n'
            f'        iters={iters}, batch_size={batch})),\n'
            '    calibration=dict(num_samples=7))\n'
        )
        return path

    return write


def units(work):
    return json.loads((work / 'ptq_result.json').read_text())['reconstruction']


def curves(work):
    return [
        {k: v for k, v in r.items() if k != 'seconds'} for r in units(work)
    ]


@pytest.mark.parametrize('recipe', ['qdrop', 'reg_ptq'])
def test_reconstruction_on_two_processes(tmp_path, short, recipe):
    """Four images in a step of one, two in a step of each of two."""
    one, two = tmp_path / 'one', tmp_path / 'two'
    config = short(recipe, 4)
    finish(ptq('retinanet_digits', one, *SHORT, config=config))
    finish(on_two_ranks(two, *SHORT, config=short(recipe, 2)))
    worst = 0.0
    for a, b in zip(units(one), units(two), strict=True):
        assert (a['unit'], a['kept']) == (b['unit'], b['kept'])
        for key in ('before', 'after', 'curve'):
            assert a[key] == pytest.approx(b[key], rel=1e-4), a['unit']
        worst = max(
            [worst]
            + [
                abs(x - y) / abs(x)
                for x, y in zip(a['curve'], b['curve'], strict=True)
            ]
        )
    saved = [
        torch.load(w / 'quantized.pth', weights_only=True) for w in (one, two)
    ]
    ours, theirs = ({**s['tensors'], **s['codes']} for s in saved)
    assert list(ours) == list(theirs)
    # a sum that is rounded otherwise may turn the rounding of a weight
    differ = sum(int((ours[k] != theirs[k]).sum()) for k in saved[0]['codes'])
    assert differ <= 1e-4 * sum(ours[k].numel() for k in saved[0]['codes'])
    for key in saved[0]['tensors']:
        torch.testing.assert_close(
            ours[key], theirs[key], rtol=1e-3, atol=1e-5
        )
    print(recipe, 'curves differ by', worst, 'bytes of codes by', differ)


def test_reconstruction_again_and_after_a_kill(tmp_path, short):
    """The same seed twice, and killed behind a unit."""
    config = short('reg_ptq', 2, iters=2)
    whole, again, work = (tmp_path / n for n in ('whole', 'again', 'killed'))
    for folder in (whole, again):
        finish(ptq('retinanet_digits', folder, *SHORT, config=config))
    assert artefact(whole) == artefact(again)
    assert curves(whole) == curves(again)
    process = ptq('retinanet_digits', work, *SHORT, config=config)
    deadline = time.monotonic() + 600
    while units_done(work) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = units_done(work)
    assert 5 <= done < len(units(whole))
    assert not (work / 'quantized.pth').exists()
    finish(ptq('retinanet_digits', work, '--resume', *SHORT, config=config))
    assert artefact(work) == artefact(whole)
    assert curves(work) == curves(whole)
    print('killed after', done, 'units of', len(units(whole)))


def units_done(work):
    try:
        saved = torch.load(work / 'ptq_resume_0.pth', weights_only=True)
    except (OSError, RuntimeError):
        return 0
    return saved.get('state', {}).get('units', 0)
