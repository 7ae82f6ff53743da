# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A goal in the place of recipe and bits."""

import pytest

from mmdet_ptq.cli.quantize import main


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        (['--bits', 'w4a4'], 'error: --max-drop chooses recipe and bits by'),
        (['--recipe', 'gptq'], 'leave --recipe out, or leave --max-drop out'),
        (['--target-bops', '3'], '--max-drop and --target-bops: give one'),
        (['--recipes', 'gptk'], "error: unknown recipe 'gptk'"),
        (['--recipes', 'uniform, gptq'], 'config none.py does not exist'),
        (['--recipes', 'uniform', '--iters', '5'], 'learns in steps'),
        (['--launcher', 'pytorch'], '--launcher pytorch: a goal is looked'),
        (['--verify-num', '0'], '--verify-num must be a whole number'),
        ([], 'config none.py does not exist'),
    ],
)
def test_mistakes(words, told, capsys):
    """Said before anything is built."""
    assert main(['none.py', '--max-drop', '0.5', *words]) == 1
    said = capsys.readouterr().err
    assert told in said and said.count('\n') <= 2


@pytest.mark.parametrize(
    'words',
    [['--recipes', 'gptq'], ['--rank-num', '8'], ['--verify-num', '9']],
)
def test_options_of_a_goal_need_one(words, capsys):
    assert main(['none.py', *words]) == 1
    said = capsys.readouterr().err
    assert f'error: {words[0]} is for a goal, and none is given' in said


def test_a_config_that_chooses_by_itself(tmp_path, capsys):
    config = tmp_path / 'config.py'
    config.write_text("quant_cfg = dict(recipe='gptq', bits='w4a4')\n")
    assert main([str(config), '--target-size', '3']) == 1
    assert "quant_cfg has 'recipe', which --max-d" in capsys.readouterr().err
    options = ['--cfg-options', 'quant_cfg.bits=w4a4']
    config.write_text('quant_cfg = dict(calibration=dict(seed=1))\n')
    assert main([str(config), '--target-size', '3', *options]) == 1
    assert "quant_cfg has 'bits'" in capsys.readouterr().err
