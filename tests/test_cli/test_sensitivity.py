# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Arguments of ``mmdet-ptq sensitivity``."""

import pytest

from mmdet_ptq.cli.sensitivity import main, parse_args


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(['--help'])
    assert ended.value.code == 0
    said = ' '.join(capsys.readouterr().out.split())
    for word in ('--check N', '--score', '--resume', '--recipe', '--keep N'):
        assert word in said
    # one process, which tests nothing
    assert '--launcher' not in said and '--no-float-eval' not in said


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        (['--check', '1'], 'error: --check 1: one layer has no rank'),
        (['--score', 'loss'], "error: unknown --score 'loss'"),
        ([], 'config none.py does not exist'),
    ],
)
def test_mistakes(words, told, capsys):
    """Said before anything is built."""
    assert main(['none.py', *words]) == 1
    assert told in capsys.readouterr().err


def test_no_checkpoint(tiny, tmp_path, capsys):
    words = ['--work-dir', str(tmp_path), '--device', 'cpu']
    assert main([str(tiny.config['retinanet']), *words]) == 1
    assert 'error: no checkpoint' in capsys.readouterr().err
