# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The command that counts."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_kit import result_of, work_dir

from mmdet_ptq import cli
from mmdet_ptq.cli.cost import main

ROOT = Path(__file__).resolve().parents[2]


def test_a_config(tiny, tmp_path, capsys, monkeypatch):
    """The numbers of the table are those of the file."""
    monkeypatch.setenv('COLUMNS', '80')
    args = ['--bits', 'w4a8', '--recipe', 'minmax', '--size', '64', '96']
    out = ['--work-dir', str(tmp_path)]
    config = str(tiny.config['retinanet'])
    assert cli.main(['cost', config, *args, *out]) == 0
    found = json.loads((tmp_path / 'cost.json').read_text())
    cost = found['cost']
    assert cost['input'] == [1, 3, 64, 96]
    assert cost['layers']['bbox_head.cls_convs.0.conv']['bits'] == [4, 8]
    said = capsys.readouterr().out
    # small numbers have a small unit
    assert 'BOPs (G)' in said
    # nothing is cut off
    assert '…' not in said
    assert 'minmax w4a8 at 64x96' in said
    rows = {
        line.split()[0]: line.split()
        for line in said.splitlines()
        if line.strip()
    }
    assert rows['all'][1] == f'{cost["macs"] / 1e9:.2f}'
    stem = cost['layers']['backbone.conv1']
    share = 100 * stem['bops'] / cost['bops']['quantized']
    assert '(1)' in rows['stem'] and f'{share:.0f}%' in rows['stem']
    assert f'{stem["bytes"]["quantized"] / 1e6:.2f}' in rows['stem']
    picture = ElementTree.parse(tmp_path / 'cost.svg').getroot()
    assert picture.tag.endswith('svg') and len(list(picture.iter())) > 50


def test_a_run(tmp_path, capsys):
    """Its own counts are shown, nothing is built."""
    layer = dict(
        part='backbone',
        macs=50,
        bops=50 * 4.5 * 6,
        calls=1,
        bits=[4.5, 6],
        elements=dict(weight=4, input=9),
        params=5,
        bytes=dict(float=20.0, quantized=8.0),
    )
    cost = dict(
        input=[1, 3, 8, 8],
        macs=50,
        bops=dict(float=51200, quantized=1350.0),
        bytes=dict(float=28.0, quantized=16.0),
        layers=dict(a=layer),
        not_counted={},
    )
    folder = work_dir(
        tmp_path / 'run',
        result_of(cost=cost, layers=dict(quantized=1, float=[]), scope=None),
    )
    assert main([str(folder)]) == 0
    assert 'weight 4.5, of an input 6' in capsys.readouterr().out
    for wrong in (dict(notes=None), dict(storage_mb='x'), dict(cost='x')):
        work_dir(tmp_path / 'old', result_of(**(dict(cost=cost) | wrong)))
        assert main([str(tmp_path / 'old')]) == 1
        assert 'is of an earlier version' in capsys.readouterr().err
    assert '4.50 bits on average' in (folder / 'cost.svg').read_text()
    assert main([str(folder), '--bits', 'w4a4']) == 1
    assert 'leave --recipe, --bits' in capsys.readouterr().err
    del layer['elements']
    work_dir(folder, result_of(cost=cost))
    assert main([str(folder)]) == 1
    assert 'is of an earlier version' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['no.py'], 'config no.py does not exist'),
        (['CONFIG', '--size', '0', '5'], 'both are at least 1 pixel'),
        (['CONFIG', '--bits', 'w4'], 'w4'),
        (['CONFIG', '--recipe', 'unifrom'], 'uniform'),
    ],
)
def test_what_is_wrong_is_said(tiny, tmp_path, capsys, args, says):
    args = [
        str(tiny.config['retinanet']) if a == 'CONFIG' else a for a in args
    ]
    assert main([*args, '--work-dir', str(tmp_path)]) == 1
    assert says in capsys.readouterr().err


def test_the_tool_is_a_door(environment):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'cost.py'), 'no.py'],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and 'no.py does not exist' in done.stderr
