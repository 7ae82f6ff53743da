# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the reconstruction benchmark counts, on a tiny RetinaNet."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmdet_ptq.layers import QuantLayer
from mmdet_ptq.passes.reconstruct.trainer import Trainer

ROOT = Path(__file__).parents[2]
BLOCK, LAYER = 'backbone.layer4.1', 'bbox_head.cls_convs.0.conv'
MIB = 2**20


@pytest.fixture(scope='module')
def tools():
    """The modules by their last word, and that of the command."""
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        yield SimpleNamespace(
            command=importlib.import_module('benchmark'),
            **{
                n: importlib.import_module(f'benchmark_{n}')
                for n in ('reconstruct', 'steps', 'memory')
            },
        )
    finally:
        sys.path.remove(str(ROOT / 'tools'))


@pytest.fixture
def visit(tools, tiny, tmp_path, monkeypatch):
    """Runs both chosen units; gives their records."""
    monkeypatch.chdir(tmp_path)

    def run(trainer, iters=3):
        with tools.steps.chosen_only(trainer):
            return tools.reconstruct.quantized(
                str(tiny.config['retinanet']),
                (64, 64),
                'cpu',
                tools.reconstruct.quant_cfg(2, iters),
            ).records

    return run


def test_summary_by_hand(tools):
    """The first step and the last, whose optimizer is not seen, go."""
    found = tools.steps.summarize(
        dict(
            step=[9.0, 2.0, 3.0, 1.5, 9.0],
            whole=[9.0, 5.0, 6.0, 7.5, 9.0],
            float=[9.0, 2.5, 1.0, 2.0, 9.0],
            quantized=[9.0, 1.25, 2.0, 1.0, 9.0],
            optimizer=[9.0, 0.5, 1.0, 0.5],
        )
    )
    # with the optimizer: steps 2.5, 4, 2; whole 5.5, 7, 8
    assert found == dict(
        over_float=1.0,  # of 1, 4, 1
        over_quantized=2.0,  # of 2, 2, 2
        without_replay=2.2,  # of 2.2, 1.75, 4
        step_s=2.5,
        whole_s=7.0,
        float_s=2.0,
        quantized_s=1.25,
        optimizer_s=0.5,
        steps=3,
    )


def test_growth_by_hand(tools):
    few = {'held': 10 * MIB, 'beside a': 500 * MIB, 'beside b': 400 * MIB}
    many = {
        'held': 60 * MIB,
        'cached': 300 * MIB,
        'sample': 5 * MIB,
        'beside a': 503 * MIB,
        'beside b': 412 * MIB,
    }
    assert tools.memory.growth(many, few, 64 * MIB) == dict(
        over_bound=1.125,  # (60 + 12) / 64
        held_mib=60.0,
        beside_mib=dict(a=3.0, b=12.0),
        bound_mib=64.0,
        cached_mib=300.0,
        sample_mib=5.0,
    )


def test_anonymous_memory(tools):
    status = 'VmRSS:\t  99 kB\nRssAnon:\t   12 kB\nRssFile:\t 3 kB\n'
    assert tools.memory.anonymous(status) == 12 * 1024
    with pytest.raises(RuntimeError, match='--no-memory'):
        tools.memory.anonymous('VmRSS:\t 99 kB\n')


def test_peak_is_that_of_all_samples(tools):
    values = iter([3, 9, 4])
    peak = tools.memory.Peak(lambda: dict(x=next(values)), interval=60)
    with peak:
        peak._sample()
    assert peak.top == dict(x=9)


def test_anonymous_memory_is_seen(tools):
    def read():
        text = Path('/proc/self/status').read_text()
        return dict(x=tools.memory.anonymous(text))

    with tools.memory.Peak(read) as peak:
        before = peak.top['x']
        block = torch.ones(16 * MIB)
        del block
    assert 60 * MIB < peak.top['x'] - before < 80 * MIB


def test_suffix_is_what_a_step_runs(tools, visit):
    """The same layers as often, and the same maps, without any replay."""
    calls, maps = [], []

    def layer(module, *_):
        if isinstance(module, QuantLayer):
            calls.append(module)

    def head(module, _, output):
        if type(module).__name__ == 'RetinaHead':
            maps.append([*output[0], *output[1]])

    class Compared(Trainer):
        def fit(self, learners, acts, k):
            run, model = self.images.run, self.images.model
            forward = tools.steps.suffix(model, self.view.name, lambda: run(0))
            hooks = torch.nn.modules.module
            handles = [
                hooks.register_module_forward_hook(h) for h in (layer, head)
            ]
            try:
                with torch.no_grad():
                    self.replayed(0)
                    # what is replayed is called, but does not run
                    names = {name for name, _ in self.prefix.keys}
                    replayed = [model.get_submodule(n) for n in names]
                    expected = [m for m in calls if m not in replayed]
                    wanted = maps[-1]
                    calls.clear()
                    found = forward()
            finally:
                for handle in handles:
                    handle.remove()
            assert len(calls) == len(expected) > 4
            assert set(calls) == set(expected)
            calls.clear()
            # the boxes do not depend on a layer of the class tower
            assert len(found) == (4 if self.view.name == LAYER else 8)
            for a, b in zip(found, wanted, strict=False):
                assert torch.equal(a, b)
            # the unit is in it
            with torch.enable_grad():
                layers = self.view.layers.values()
                weights = [m.weight.requires_grad_(True) for m in layers]
                grads = torch.autograd.grad(
                    sum(t.sum() for t in forward()), weights
                )
            assert all(bool(g.any()) for g in grads)
            for weight in weights:
                weight.requires_grad_(False)
            return dict(unit=self.view.name)

    found = visit(Compared)
    assert [r['unit'] for r in found] == [BLOCK, LAYER]


def test_timing_changes_nothing(tools, visit):
    timed, plain = visit(tools.steps.TimedTrainer, 4), visit(Trainer, 4)
    for one, other in zip(timed, plain, strict=True):
        times = one.pop('times')
        assert {k: len(v) for k, v in times.items()} == dict(
            step=4, whole=4, float=4, quantized=4, optimizer=3
        )
        assert all(t > 0 for ts in times.values() for t in ts)
        del one['seconds'], other['seconds']
        assert one == other
        assert len(one['curve']) == 4


def test_end_to_end(tools, tiny, tmp_path, monkeypatch, capsys):
    """Both parts are written; what another run wrote there stays."""
    monkeypatch.chdir(tmp_path)
    # the child process has a test of its own
    monkeypatch.setattr(tools.reconstruct, 'in_child', tools.memory.peak_of)
    out = tmp_path / 'found.json'
    out.write_text(json.dumps(dict(full=dict(found=1))))
    options = {
        'size': 64,
        'iters': 3,
        'threads': 1,
        'memory-size': 64,
        'memory-images': 4,
        'memory-iters': 2,
        'cache': '0.5MiB',
    }
    words = ['reconstruct']
    for name, value in options.items():
        words += [f'--{name}', str(value)]
    words += ['--config', str(tiny.config['retinanet'])]
    monkeypatch.setattr(sys, 'argv', ['b', *words, '--out', str(out)])
    assert tools.command.main() == 0
    found = json.loads(out.read_text())
    assert found['full'] == dict(found=1)
    for name in ('steps', 'memory'):
        assert found[name]['command'].endswith(' '.join(words))
        assert found[name]['threads'] == 1 and found[name]['machine']
    assert set(found['steps']['found']) == {BLOCK, LAYER}
    assert found['steps']['clock'] == 'CPU'
    for one in found['steps']['found'].values():
        assert one['steps'] == 1 and one['over_float'] > 0
    memory = found['memory']['found']
    assert 0 < memory['held_mib'] <= memory['bound_mib'] == 0.5
    assert memory['cached_mib'] > 0.7
    assert set(memory['beside_mib']) == {
        'the float model',
        'backbone.layer1.0',
        BLOCK,
        LAYER,
    }
    assert BLOCK in capsys.readouterr().out


@pytest.mark.slow
def test_memory_in_a_process(tools, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = tools.reconstruct.measure_memory(
        str(tiny.config['retinanet']), 64, 3, '1MiB', 2, 1
    )
    assert found['held_mib'] <= 1


def test_a_whole_run(tools, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = tools.reconstruct.measure_full(
        str(tiny.config['retinanet']), (64, 96), 2, 1, 'cpu'
    )
    assert found['units'] > 15 >= found['kept'] >= 0
    assert found['minutes'] >= 0 and 'reconstruction' in found['stages']
    # a GPU's
    assert found['peak_gib'] is None


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--wrong'], 'unrecognized arguments: --wrong'),
        (['--full'], '--full takes days on a CPU: give --device cuda'),
        (['--full', '--device', 'cuda'], 'there is no GPU here'),
        (['--iters', '2'], 'give 3'),
        (['--images', '1'], 'at least 2 images'),
        (['--memory-images', '1'], 'at least 2 images'),
    ],
    ids=str,
)
def test_refused(tools, monkeypatch, capsys, words, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit) as stop:
        tools.reconstruct.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_command_has_no_place(tools):
    found = tools.reconstruct.command_of(['--out', 'a/b.json', '--iters', '9'])
    assert found == 'python -m tools.speed.benchmark reconstruct --iters 9'
    assert tools.reconstruct.command_of(['--out=a']).endswith(' reconstruct')
