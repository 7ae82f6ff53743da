# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The doors to the commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmdet_ptq import cli
from mmdet_ptq.cli.quantize import main

ROOT = Path(__file__).resolve().parents[2]


def test_print_recipe_by_each_door(tmp_path, capsys, environment):
    path = tmp_path / 'config.py'
    path.write_text('x = 1\n')
    words = [str(path), '--recipe', 'minmax', '--print-recipe']
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith('quant_cfg = {') and "'MinMaxObserver'" in said
    assert cli.main(['quantize', *words]) == 0
    assert capsys.readouterr().out == said
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'ptq.py'), *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, said), done.stderr


@pytest.mark.parametrize(
    ('words', 'usage'),
    [
        (['--help'], 'usage: mmdet-ptq [-h] {quantize}'),
        (['quantize', '--help'], 'usage: mmdet-ptq quantize [-h]'),
    ],
)
def test_help(capsys, words, usage):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(usage)


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['quantise'])
    assert ended.value.code == 2
    assert "'quantise'" in capsys.readouterr().err
