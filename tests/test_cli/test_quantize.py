# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The doors to the commands."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdet_ptq import cli
from mmdet_ptq.cli.quantize import main, parse_args
from mmdet_ptq.quant_cfg import parse_quant_cfg

ROOT = Path(__file__).resolve().parents[2]


def test_print_recipe_by_each_door(tmp_path, capsys, environment):
    path = tmp_path / 'config.py'
    path.write_text('x = 1\n')
    words = [str(path), '--recipe', 'minmax', '--print-recipe']
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith('quant_cfg = {') and "'MinMaxObserver'" in said
    # in the order of the pages, not of the alphabet
    keys = ('bits', 'rules', 'passes', 'calibration')
    places = [said.index(f"'{key}':") for key in keys]
    assert places == sorted(places)
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
        (
            ['--help'],
            'usage: mmdet-ptq [-h] {quantize,sensitivity,report,cost}',
        ),
        (['quantize', '--help'], 'usage: mmdet-ptq quantize [-h]'),
    ],
)
def test_help(capsys, words, usage):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(usage)


def test_no_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert 'usage: mmdet-ptq [-h]' in capsys.readouterr().err


def test_exit_code_of_a_command(tmp_path, capsys):
    words = [str(tmp_path / 'none.py')]
    assert cli.main(['quantize', *words]) == main(words) == 1
    said = capsys.readouterr().err
    assert said == 2 * f'\nerror: config {words[0]} does not exist\n'


def test_no_checkpoint(tmp_path, capsys):
    """Said before anything is built: this config has no model."""
    config = tmp_path / 'config.py'
    config.write_text('x = 1\n')
    assert main([str(config)]) == 1
    assert 'error: no checkpoint: give it after C' in capsys.readouterr().err


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['quantise'])
    assert ended.value.code == 2
    assert "'quantise'" in capsys.readouterr().err


@pytest.mark.parametrize('name', ['pd_quant', 'brecq', 'lapq', 'minmax'])
def test_printed_recipe_is_one(tmp_path, capsys, name):
    """With every default, and again the same as a recipe or a config."""
    config = tmp_path / 'config.py'
    config.write_text('x = 1\n')
    rule = "dict(match='@mask', skip=True)"
    start = tmp_path / 'start.py'
    start.write_text(f'recipe = {name!r}\nrules = [{rule}]\n')

    def printed(*words):
        assert main([*map(str, words), '--print-recipe']) == 0
        return capsys.readouterr().out

    said = printed(config, '--recipe', start, '--bits', 'w4a6')
    saved = tmp_path / 'saved.py'
    saved.write_text(said)
    assert printed(config, '--recipe', saved) == said
    assert printed(saved) == said
    found = parse_quant_cfg(dict(recipe=str(saved)))
    plain = parse_quant_cfg(dict(recipe=str(start), bits='w4a6'))
    assert (found.rules, found.bits) == (plain.rules, plain.bits)
    assert found.calibration == plain.calibration


@pytest.mark.parametrize('word', ['--local_rank=3', '--local-rank=3'])
def test_rank_by_argument_or_environment(monkeypatch, word):
    """torch.distributed.launch gives the one, torchrun the other."""
    monkeypatch.setenv('LOCAL_RANK', '1')
    parse_args(['config.py', word])
    assert os.environ['LOCAL_RANK'] == '1'
    monkeypatch.delenv('LOCAL_RANK')
    parse_args(['config.py', word])
    assert os.environ['LOCAL_RANK'] == '3'


def test_recipe_on_a_terminal_of_few_characters(tmp_path, monkeypatch):
    config = tmp_path / 'config.py'
    config.write_text(
        "quant_cfg = dict(recipe='minmax', "
        "rules=[dict(match='é*', skip=True)])\n",
        encoding='utf-8',
    )
    out = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', out)
    assert main([str(config), '--print-recipe']) == 0
    out.flush()
    assert b"'passes':" in out.buffer.getvalue()


def test_printed_recipe_says_what_acts(tmp_path, capsys):
    config = tmp_path / 'config.py'
    config.write_text('x = 1\n')
    assert main([str(config), '--recipe', 'pd_quant', '--print-recipe']) == 0
    said = capsys.readouterr().out
    for part in (
        "'iters': 2000",
        "'batch_size': 2",
        "'holdout': 0.125",
        "'revert': True",
        "'temperature': 4.0",
        "'warmup': 0.2",
        "'search': 'auto'",
    ):
        assert part in said


def test_rules_of_a_base_are_not_lost_in_silence(tmp_path, capsys):
    rules = "rules=[dict(match='{}', skip=True)]"
    (tmp_path / 'base.py').write_text(
        f"quant_cfg = dict(recipe='minmax', {rules.format('@head')})\n"
    )
    own = tmp_path / 'own.py'
    own.write_text(
        f"_base_ = 'base.py'\nquant_cfg = dict({rules.format('@mask')})\n"
    )
    assert main([str(own), '--print-recipe']) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f'note: {own}: ') and "'@head'" in said.err
    assert "'@head'" not in said.out
