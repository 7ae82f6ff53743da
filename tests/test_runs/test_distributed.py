# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Two processes on CPU find what one finds."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture
def two_ranks(tiny, tmp_path, environment, look_at):
    """Runs tools/dist_ptq.sh with two processes."""

    def run(*arguments, model='retinanet', config=None):
        with socket.socket() as found:
            found.bind(('127.0.0.1', 0))
            port = found.getsockname()[1]
        work = tmp_path / 'two'
        path = os.pathsep.join(
            [str(Path(sys.executable).parent), environment['PATH']]
        )
        done = subprocess.run(
            [
                'bash',
                str(TOOLS / 'dist_ptq.sh'),
                str(config or tiny.config[model]),
                str(tiny.checkpoint[model]),
                '2',
                '--work-dir',
                str(work),
                '--device',
                'cpu',
                *map(str, arguments),
            ],
            env=dict(environment, PATH=path, PORT=str(port)),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return look_at(done.returncode, work, done.stdout, done.stderr)

    return run


def state(run):
    saved = torch.load(run.artefact, weights_only=True)
    return {**saved['tensors'], **saved['codes']}


@pytest.mark.parametrize(
    ('model', 'recipe'),
    [
        pytest.param('retinanet', 'minmax', marks=pytest.mark.slow),
        ('mask_rcnn', 'uniform'),
    ],
)
def test_two_against_one(ptq, two_ranks, tiny, tmp_path, model, recipe):
    """Five images, one of them broken, so that shares are uneven."""
    folder = tmp_path / 'images'
    shutil.copytree(tiny.root / 'train', folder)
    (folder / '5.png').unlink()
    (folder / '2.png').write_bytes(b'broken')
    options = ['--recipe', recipe, '--bits', 'w4a4', '--calib-source', folder]
    two = two_ranks(*options, model=model)
    assert two.code == 0, two.err[-2000:]
    one = ptq(*options, model=model)
    ours, theirs = state(one), state(two)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    for key in ('float', 'quantized', 'layers', 'notes', 'storage_mb'):
        assert one.result[key] == two.result[key], key
    assert any('2.png' in n for n in two.result['notes'])
    # one table, from rank 0, and no resume file left of either
    assert two.out.count('parameters (MB)') == 1
    assert not list(two.work.glob('ptq_resume*'))


@pytest.mark.slow  # test_ranks.py has the claim without the command line
def test_reconstruction_of_two_against_one(ptq, two_ranks, tiny, tmp_path):
    """Two in a step of one process, one in a step of each of two.

    Five images, one of them broken: the fewer they are, the more unlike
    are the shares of the ranks.
    """
    folder = tmp_path / 'images'
    shutil.copytree(tiny.root / 'train', folder)
    (folder / '5.png').unlink()
    (folder / '2.png').write_bytes(b'broken')
    runs = []
    for start, batch in ((ptq, 2), (two_ranks, 1)):
        config = tmp_path / f'batch_{batch}.py'
        config.write_text(
            f"_base_ = r'{tiny.config['retinanet']}'\n"
            "quant_cfg = dict(recipe='reg_ptq', bits='w4a4',\n"
            '    pass_args=dict(Reconstruct=dict(\n'
            f'        iters=4, batch_size={batch})),\n'
            f"    calibration=dict(source=r'{folder}'))\n"
        )
        runs.append(start('--no-float-eval', config=config))
        assert runs[-1].code == 0, runs[-1].err[-2000:]
    one, two = runs
    assert one.result['notes'] == two.result['notes']
    ours, theirs = (r.result['reconstruction'] for r in runs)
    assert len(ours) == 18 and any(r['kept'] for r in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert (a['unit'], a['kept']) == (b['unit'], b['kept'])
        for key in ('before', 'after', 'curve'):
            assert a[key] == pytest.approx(b[key], rel=1e-5), a['unit']
    ours, theirs = state(one), state(two)
    assert list(ours) == list(theirs)
    for key in ours:
        if ours[key].is_floating_point():
            torch.testing.assert_close(ours[key], theirs[key])
        else:
            assert torch.equal(ours[key], theirs[key])


def test_scripts_are_valid():
    for name in ('dist_ptq.sh', 'slurm_ptq.sh'):
        assert os.access(TOOLS / name, os.X_OK)
        subprocess.run(['bash', '-n', str(TOOLS / name)], check=True)


def test_slurm_script(tmp_path, environment):
    """What it hands to srun, words with spaces kept whole."""
    fake = tmp_path / 'srun'
    fake.write_text('#!/bin/sh\nfor a in "$@"; do echo "<$a>"; done\n')
    fake.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{environment["PATH"]}'
    out = subprocess.run(
        [
            'bash',
            str(TOOLS / 'slurm_ptq.sh'),
            'part',
            'job',
            'c.py',
            'c.pth',
            '--calib-source',
            'my images',
        ],
        env=dict(environment, PATH=path, GPUS='2', SRUN_ARGS='--mem 1G'),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for word in (
        '-p',
        'part',
        '--job-name=job',
        '--ntasks=2',
        '--mem',
        '1G',
        'c.py',
        'c.pth',
        '--launcher=slurm',
        'my images',
    ):
        assert f'<{word}>' in out
