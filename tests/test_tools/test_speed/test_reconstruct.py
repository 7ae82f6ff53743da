# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The reconstruction benchmark on a tiny RetinaNet."""

import json

import pytest
import torch

from tools.speed import benchmark, memory, reconstruct

BLOCK, LAYER = 'backbone.layer4.1', 'bbox_head.cls_convs.0.conv'


def test_end_to_end(tiny, tmp_path, monkeypatch, capsys):
    """Both parts are written; what another run wrote there stays."""
    monkeypatch.chdir(tmp_path)
    # the child process has a test of its own
    monkeypatch.setattr(reconstruct, 'in_child', memory.peak_of)
    out = tmp_path / 'found.json'
    out.write_text(json.dumps(dict(full=dict(found=1))))
    options = {
        'iters': 3,
        'threads': 1,
        'memory-size': 64,
        'memory-images': 4,
        'memory-iters': 2,
        'cache': '0.5MiB',
    }
    words = ['reconstruct', '--size', '64', '96']
    for name, value in options.items():
        words += [f'--{name}', str(value)]
    words += ['--config', str(tiny.config['retinanet'])]
    assert benchmark.main([*words, '--out', str(out)]) == 0
    found = json.loads(out.read_text())
    assert found['full'] == dict(found=1)
    for name in ('steps', 'memory'):
        assert found[name]['command'].endswith(' '.join(words))
        assert found[name]['threads'] == 1 and found[name]['machine']
    assert set(found['steps']['found']) == {BLOCK, LAYER}
    assert found['steps']['clock'] == 'CPU'
    assert found['steps']['size'] == [64, 96]
    for one in found['steps']['found'].values():
        assert one['steps'] == 1 and one['over_float'] > 0
    peak = found['memory']['found']
    assert 0 < peak['held_mib'] <= peak['bound_mib'] == 0.5
    assert peak['cached_mib'] > 0.7
    assert set(peak['beside_mib']) == {
        'the float model',
        'backbone.layer1.0',
        BLOCK,
        LAYER,
    }
    assert BLOCK in capsys.readouterr().out


@pytest.mark.slow
def test_memory_in_a_process(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = reconstruct.measure_memory(
        str(tiny.config['retinanet']), 64, 3, '1MiB', 2, 1
    )
    assert found['held_mib'] <= 1


def test_a_whole_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = reconstruct.measure_full(
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
        (['--full', '--device', 'cuda'], 'PyTorch sees no GPU here'),
        (['--size', '1', '2', '3'], 'a side, or height and width'),
        (['--iters', '2'], 'give 3'),
        (['--images', '1'], 'at least 2 images'),
        (['--memory-images', '1'], 'at least 2 images'),
    ],
    ids=str,
)
def test_refused(monkeypatch, capsys, words, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit) as stop:
        reconstruct.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_command_has_no_place():
    found = reconstruct.command_of(['--out', 'a/b.json', '--iters', '9'])
    assert found == 'python -m tools.speed.benchmark reconstruct --iters 9'
    assert reconstruct.command_of(['--out=a']).endswith(' reconstruct')
