# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the command line makes of a config."""

import pytest
from mmengine.config import Config

from mmdet_ptq.cli.config import load_config, quant_cfg_of
from mmdet_ptq.cli.quantize import parse_args
from mmdet_ptq.errors import QuantConfigError

RULES = [dict(match='*', act=dict(bits=4))]


def arguments(*words, config='config.py'):
    return parse_args([str(config), *words])


@pytest.mark.parametrize(
    ('found', 'words', 'expected'),
    [
        (None, [], dict(recipe='uniform', bits='w8a8')),
        (None, ['--bits', 'w4a4'], dict(recipe='uniform', bits='w4a4')),
        (None, ['--recipe', 'minmax'], dict(recipe='minmax', bits='w8a8')),
        # what a config leaves out is not made up
        (dict(recipe='minmax'), [], dict(recipe='minmax')),
        (
            dict(recipe='minmax', bits='w4a4'),
            ['--bits', 'w6a6'],
            dict(recipe='minmax', bits='w6a6'),
        ),
        # rules of another recipe do not go along
        (
            dict(
                rules=RULES,
                passes=[dict(type='FoldBatchNorm')],
                pass_args=dict(FoldBatchNorm=dict()),
                bits='w4a4',
                calibration=dict(seed=3, num_samples=5),
            ),
            ['--recipe', 'minmax', '--calib-num', '7'],
            dict(
                recipe='minmax',
                bits='w4a4',
                calibration=dict(seed=3, num_samples=7),
            ),
        ),
        (
            dict(recipe='minmax', rules=RULES),
            ['--calib-source', 'test'],
            dict(
                recipe='minmax', rules=RULES, calibration=dict(source='test')
            ),
        ),
    ],
)
def test_command_line_over_config(found, words, expected):
    cfg = Config(dict(quant_cfg=found) if found is not None else {})
    assert quant_cfg_of(cfg, arguments(*words)) == expected


def test_quant_cfg_that_is_no_dict():
    with pytest.raises(QuantConfigError, match='expected a dict'):
        quant_cfg_of(Config(dict(quant_cfg='uniform')), arguments())


def load(tmp_path, text, *words):
    path = tmp_path / 'my_config.py'
    path.write_text(text)
    return load_config(arguments('a.pth', *words, config=path))


def test_config_for_the_runner(tmp_path):
    cfg = load(tmp_path, 'x = 1\n')
    assert cfg.runner_type == 'PTQRunner' and cfg.load_from == 'a.pth'
    assert cfg.work_dir == 'work_dirs/my_config'
    assert cfg.custom_imports == dict(
        imports=['mmdet_ptq'], allow_failed_imports=False
    )
    assert cfg.ptq_cfg == dict(
        float_eval=True, resume=False, trust_checkpoint=False
    )
    assert 'device' not in cfg


def test_options_and_config_together(tmp_path):
    text = (
        "work_dir = 'there'\nx = 1\n"
        "custom_imports = dict(imports=['json'], allow_failed_imports=True)\n"
        'ptq_cfg = dict(float_eval=True, resume=True, trust_checkpoint=True)\n'
    )
    cfg = load(tmp_path, text, '--no-float-eval')
    assert cfg.work_dir == 'there'
    assert cfg.custom_imports == dict(
        imports=['json', 'mmdet_ptq'], allow_failed_imports=True
    )
    assert cfg.ptq_cfg == dict(
        float_eval=False, resume=True, trust_checkpoint=True
    )
    words = ['--work-dir', 'here', '--device', 'cpu', '--resume']
    words += ['--trust-checkpoint', '--cfg-options', 'x=2']
    text = "custom_imports = dict(imports='json')\n"
    text += 'ptq_cfg = dict(float_eval=False)\n'
    cfg = load(tmp_path, text, *words)
    assert (cfg.work_dir, cfg.device, cfg.x) == ('here', 'cpu', 2)
    assert cfg.custom_imports.imports == ['json', 'mmdet_ptq']
    assert cfg.ptq_cfg == dict(
        float_eval=False, resume=True, trust_checkpoint=True
    )


@pytest.mark.parametrize(
    ('plugin', 'cause'),
    [
        ('import torchvisiom', "No module named 'torchvisiom'"),
        ('from json import nothing', "cannot import name 'nothing'"),
    ],
)
def test_cause_of_a_failed_import(tmp_path, monkeypatch, plugin, cause):
    name = 'plugin_that_fails'
    (tmp_path / f'{name}.py').write_text(plugin)
    monkeypatch.syspath_prepend(tmp_path)
    text = f"custom_imports = dict(imports=['json', '{name}'])\n"
    with pytest.raises(QuantConfigError) as raised:
        load(tmp_path, text)
    message = str(raised.value)
    assert f'Failed to import {name}' in message and cause in message
    assert '\n' not in message
