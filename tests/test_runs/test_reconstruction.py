# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Reconstructions by ``mmdet-ptq quantize``: repeated, stopped, gone wrong."""

import signal
import subprocess
import sys
import time
from itertools import groupby

import pytest
import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.registry import MODELS
from rich.console import Console

from mmdet_ptq.engine.result import print_units
from mmdet_ptq.losses import L2Loss
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.registry import LOSSES

# the command, standing still in the middle of one unit; before its own
# arguments come the number of the unit, counted over all passes, and a file
# that is made when it is there
STUCK = """
import pathlib, sys, time
from mmdet_ptq.passes.reconstruct.trainer import Trainer
unit, marker = int(sys.argv[1]), pathlib.Path(sys.argv[2])
step, started = Trainer.step, []
def stuck(self, learners, batch, progress, k, it):
    if it == 0:
        started.append(k)
    elif len(started) > unit:
        marker.touch()
        time.sleep(300)
    return step(self, learners, batch, progress, k, it)
Trainer.step = stuck
from mmdet_ptq.cli import main
sys.exit(main(['quantize', *sys.argv[3:]]))
"""


@pytest.fixture
def config(tiny, tmp_path):
    """Writes a config of the tiny RetinaNet with a short reconstruction."""

    def write(recipe, more='', calibration='num_samples=3', **args):
        args = dict(dict(iters=2, batch_size=1), **args)
        path = tmp_path / f'{recipe}_{args["iters"]}.py'
        path.write_text(
            f"_base_ = r'{tiny.config['retinanet']}'\n"
            f"quant_cfg = dict(recipe='{recipe}', bits='w4a4',\n"
            f'    pass_args=dict(Reconstruct={args!r}),\n'
            f'    calibration=dict({calibration}))\n{more}\n'
        )
        return path

    return write


@pytest.fixture
def fits(monkeypatch):
    """Names of the units that are learned."""
    found = []
    fit = Trainer.fit

    def noted(self, *args):
        found.append(self.view.name)
        return fit(self, *args)

    monkeypatch.setattr(Trainer, 'fit', noted)
    return found


def units_of(run):
    """The records of a result, without times."""
    return [
        {k: v for k, v in r.items() if k != 'seconds'}
        for r in run.result['reconstruction']
    ]


def killed(path, tiny, work, environment, unit):
    """Kills the tool in the middle of a unit."""
    marker = work.with_suffix('.there')
    with subprocess.Popen(
        [
            sys.executable,
            '-c',
            STUCK,
            str(unit),
            str(marker),
            str(path),
            str(tiny.checkpoint['retinanet']),
            '--work-dir',
            str(work),
            '--device',
            'cpu',
            '--no-float-eval',
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not marker.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (work / 'quantized.pth').exists()
    return torch.load(work / 'ptq_resume_0.pth', weights_only=True)


@pytest.mark.parametrize(
    ('recipe', 'unit', 'done'),
    [
        pytest.param('reg_ptq', 0, 4, marks=pytest.mark.slow),
        ('reg_ptq', 7, 4),
        ('brecq', 22, 5),
    ],
)
def test_kill_and_resume(
    ptq, tiny, tmp_path, environment, config, fits, recipe, unit, done
):
    """In the first unit, behind some, and in the second pass.

    The uninterrupted run is made twice, here and, after the kill, in part
    by a process of its own: the same seed gives the same bytes.
    """
    # at least something of each pass is to be kept
    revert = recipe == 'reg_ptq'
    path = config(recipe, revert=revert)
    whole = ptq('--no-float-eval', config=path, work=tmp_path / 'whole')
    order = list(fits)
    assert len(order) == 18 * (2 if recipe == 'brecq' else 1)
    assert any(r['kept'] for r in units_of(whole))
    check_tables(whole.out, whole.result['reconstruction'])
    learned = ['AdaRound']
    if recipe == 'reg_ptq':
        learned += ['LearnedSteps', 'LearnedCodebook']
    assert whole.result['reconstruction'][0]['learned'] == learned
    left = [n for n in whole.result['notes'] if 'did not fall' not in n]
    assert not revert or len(left) < len(whole.result['notes'])
    assert whole.out.count('note: ') == len(left)
    # the pass that is stopped has done something by then
    behind = units_of(whole)[unit - unit % 18 : unit]
    assert any(r['kept'] for r in behind) or not behind
    work = tmp_path / 'killed'
    saved = killed(path, tiny, work, environment, unit)
    assert saved['done'] == done
    assert saved.get('state', {}).get('units', 0) == unit % 18
    fits.clear()
    resumed = ptq('--no-float-eval', '--resume', config=path, work=work)
    assert resumed.code == 0
    assert fits == order[unit:]
    assert resumed.digest == whole.digest
    assert units_of(resumed) == units_of(whole)
    assert resumed.result['notes'] == whole.result['notes']
    assert resumed.result['quantized'] == whole.result['quantized']
    assert not list(work.glob('ptq_resume*'))


def tensors_of(run):
    saved = torch.load(run.artefact, weights_only=True)
    return {**saved['tensors'], **saved['codes']}


def test_no_iteration_is_uniform(ptq, tmp_path, config):
    none = ptq('--no-float-eval', config=config('qdrop', iters=0))
    plain = ptq(
        *('--no-float-eval', '--calib-num', 3),
        *('--recipe', 'uniform', '--bits', 'w4a4'),
        work=tmp_path / 'uniform',
    )
    ours, theirs = tensors_of(none), tensors_of(plain)
    assert list(ours) == list(theirs)
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert none.result['quantized'] == plain.result['quantized']
    assert none.result['reconstruction'] == []


# what goes wrong, and does not end the run ---------------------------------


@pytest.fixture
def breaking():
    """A loss that is NaN in some units, after their first step."""
    steps = []

    class BreaksInOne(L2Loss):
        def __call__(self, outputs, targets, weights):
            value = super().__call__(outputs, targets, weights)
            # of the backbone, the last stage alone is 2 pixels high
            if outputs[0].shape[1:3] == (64, 2) and value.requires_grad:
                steps.append(value)
                return value * (float('nan') if len(steps) % 2 == 0 else 1)
            return value

    LOSSES.register_module(module=BreaksInOne)
    yield [dict(type='BreaksInOne')]
    LOSSES.module_dict.pop('BreaksInOne')


def test_nan_in_a_unit(ptq, config, breaking, tmp_path, monkeypatch):
    monkeypatch.setenv('COLUMNS', '120')
    run = ptq('--no-float-eval', config=config('qdrop', losses=breaking))
    assert run.code == 0
    records = {r['unit']: r for r in run.result['reconstruction']}
    broken = [n for n, r in records.items() if 'NaN' in r['why']]
    assert broken == ['backbone.layer4.0', 'backbone.layer4.1']
    for name in broken:
        assert not records[name]['kept'] and records[name]['after'] is None
        note = f'{name}: put back, the loss became NaN or Inf'
        assert note in run.result['notes']
        assert f'note: {note}' in run.out
    # and that there are few images
    assert run.out.count('note: ') == 3
    # those after it are learned, and nothing broken is saved
    assert list(records)[-1] == 'bbox_head.reg_convs.0.conv'
    assert any(r['kept'] for r in records.values())
    # those put back are as they would be without a reconstruction
    plain = ptq(
        *('--no-float-eval', '--calib-num', 3),
        *('--recipe', 'uniform', '--bits', 'w4a4'),
        work=tmp_path / 'uniform',
    )
    ours, theirs = tensors_of(run), tensors_of(plain)
    same = {k for k in ours if torch.equal(ours[k], theirs[k])}
    assert set(ours) - same
    assert not {k for k in set(ours) - same if 'backbone.layer4' in k}


def test_units_without_a_learnable_part(ptq, config, monkeypatch):
    """A uniform backbone and neck have no codebook; the head has."""
    monkeypatch.setenv('COLUMNS', '120')
    run = ptq(
        '--no-float-eval',
        config=config('reg_ptq', learn=[dict(type='LearnedCodebook')]),
    )
    assert run.code == 0
    why = {r['unit']: r['why'] for r in run.result['reconstruction']}
    left = [n for n, w in why.items() if w == 'it has no learnable part']
    assert left == [n for n in why if not n.startswith('bbox_head')]
    assert len(left) == 16
    for name in left:
        note = f'{name}: left as it was, it has no learnable part'
        assert note in run.result['notes']
        assert f'note: {note}' in run.out


@pytest.fixture
def unknown_head():
    """A head whose outputs mean something of its own."""

    class OwnHead(RetinaHead):
        def predict_by_feat(self, *args, **kwargs):
            return super().predict_by_feat(*args, **kwargs)

    MODELS.register_module(module=OwnHead)
    yield "model = dict(bbox_head=dict(type='OwnHead'))"
    MODELS.module_dict.pop('OwnHead')


def test_head_without_adapter(ptq, config, unknown_head):
    path = config('reg_ptq', more=unknown_head)
    with pytest.warns(UserWarning, match='OwnHead: L2 on raw outputs'):
        run = ptq('--no-float-eval', config=path)
    assert run.code == 0
    assert len(run.result['reconstruction']) == 18
    assert run.result['reconstruction'][0]['curve'][0] > 0


# the terminal --------------------------------------------------------------


def check_tables(out, records):
    """A table for each pass, a line for each unit, in order."""
    lines = out.splitlines()
    at = -1
    for learned, group in groupby(records, lambda r: r['learned']):
        units = list(group)
        kept = sum(r['kept'] for r in units)
        title = f'{", ".join(learned)}: {kept} of {len(units)} units kept'
        at = next(i for i in range(at + 1, len(lines)) if title in lines[i])
        for record in units:
            at = next(
                i
                for i in range(at + 1, len(lines))
                if lines[i].split()[:1] == [record['unit']]
            )
            _, before, after, seconds, said = lines[at].split(maxsplit=4)
            assert float(before) == pytest.approx(record['before'], rel=1e-3)
            assert seconds == f'{record["seconds"]:.1f}'
            assert said.strip() == ('yes' if record['kept'] else 'no')
            if record['after'] is None:
                assert after == '-'
            else:
                assert float(after) == pytest.approx(record['after'], rel=1e-3)


@pytest.mark.parametrize('width', [80, 120])
def test_table_fits_the_terminal(width, capsys):
    """Names stay whole, nothing is told twice."""
    names = ['backbone.conv1', 'decoder.layers.5.cross_attn.attn.out_proj']
    nan = 'the loss became NaN or Inf'
    records = [
        dict(unit=n, learned=['AdaRound'], before=1234.5, **found)
        for n, found in zip(
            names * 2,
            (
                dict(after=0.25, kept=True, why='', seconds=1234.5),
                dict(after=None, kept=False, why=nan, seconds=0.1),
                dict(after=2e4, kept=False, why='it rose', seconds=0.1),
                dict(after=1.0, kept=True, why='', seconds=0.1),
            ),
            strict=True,
        )
    ]
    notes = [
        f'{names[1]}: put back, {nan}',
        f'{names[0]}: put back, it rose',
        'a.png: cannot be read',
    ]
    console = Console(width=width)
    # the numbers say that a loss rose
    assert print_units(console, records, notes) == [notes[0], notes[2]]
    out = capsys.readouterr().out
    check_tables(out, records)
    assert max(map(len, out.splitlines())) <= width
    assert print_units(console, [], notes) == notes
    assert capsys.readouterr().out == ''
