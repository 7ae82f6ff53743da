# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the command line makes of a config."""

import pytest
from mmengine.config import Config

from mmdet_ptq.cli.config import asked_of, load_config, quant_cfg_of
from mmdet_ptq.cli.quantize import parse_args
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg import parse_quant_cfg

MINMAX = dict(type='MinMaxObserver')
ITERS = dict(Reconstruct=dict(iters=5))
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
        # what was written for the config holds for another recipe as well
        (
            dict(
                recipe='reg_ptq',
                rules=RULES,
                pass_args=dict(Observe=dict(observer=MINMAX)),
                bits='w4a4',
                calibration=dict(seed=3, num_samples=5),
            ),
            ['--recipe', 'minmax', '--calib-num', '7'],
            dict(
                recipe='minmax',
                rules=RULES,
                pass_args=dict(Observe=dict(observer=MINMAX)),
                bits='w4a4',
                calibration=dict(seed=3, num_samples=7),
            ),
        ),
        (
            None,
            ['--scope', 'repq_det'],
            dict(recipe='uniform', bits='w8a8', scope='repq_det'),
        ),
        (
            dict(recipe='qdrop', bits='w4a4', scope='repq_det'),
            ['--recipe', 'minmax'],
            dict(recipe='minmax', bits='w4a4', scope='repq_det'),
        ),
        # both reconstructions of BRECQ, beside what is there
        (
            dict(
                recipe='brecq',
                pass_args=dict(
                    Reconstruct=dict(holdout=0.25), SetRanges=dict()
                ),
            ),
            ['--iters', '7'],
            dict(
                recipe='brecq',
                pass_args=dict(
                    Reconstruct=dict(holdout=0.25, iters=7), SetRanges=dict()
                ),
            ),
        ),
        (
            None,
            ['--recipe', 'qdrop', '--iters', '0'],
            dict(
                recipe='qdrop',
                bits='w8a8',
                pass_args=dict(Reconstruct=dict(iters=0)),
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


@pytest.mark.parametrize(
    ('found', 'words', 'says'),
    [
        ('uniform', [], "expected a dict, got 'uniform'.*recipe='uniform'"),
        (
            dict(rules=RULES, passes=[dict(type='Observe')]),
            ['--recipe', 'minmax'],
            '--recipe minmax.*passes of its own.*quant_cfg.passes=None',
        ),
        (dict(recipe='minmax'), ['--iters', '5'], '--iters 5.*Reconstruct'),
        (dict(recipe='qdrop'), ['--iters', '-1'], 'from 0, got -1'),
        (dict(recipe='minmax'), ['--calib-num', '0'], 'num_samples.*0'),
        (dict(recipe='minmax'), ['--scope', 'repq'], "mean 'repq_det'"),
    ],
)
def test_command_line_against_config(found, words, says):
    with pytest.raises(QuantConfigError, match=says):
        cfg = Config(dict(quant_cfg=found))
        parse_quant_cfg(quant_cfg_of(cfg, arguments(*words)))


def test_arguments_of_a_pass_that_the_recipe_lacks():
    cfg = Config(dict(quant_cfg=dict(recipe='qdrop', pass_args=ITERS)))
    found = quant_cfg_of(cfg, arguments('--recipe', 'minmax'))
    says = "pass_args.*'Reconstruct'.*FoldBatchNorm.*Remove it"
    with pytest.raises(QuantConfigError, match=says):
        parse_quant_cfg(found)


def test_bits_of_a_recipe_file(tmp_path):
    """They hold as long as nobody says otherwise."""
    path = tmp_path / 'mine.py'
    path.write_text("recipe = 'minmax'\nbits = 'w3a3'\n")
    words = ['--recipe', str(path)]

    def bits(found, *more):
        cfg = Config(dict(quant_cfg=found) if found is not None else {})
        found = quant_cfg_of(cfg, arguments(*words, *more))
        return str(parse_quant_cfg(found).bits)

    assert bits(None) == bits(dict(bits='w3a3')) == 'w3a3'
    assert bits(dict(calibration=dict(seed=1))) == 'w3a3'
    assert bits(dict(bits='w4a4'), '--bits', 'w5a5') == 'w5a5'
    with pytest.raises(QuantConfigError, match=r"'w3a3'.*'w4a4'.*--bits"):
        bits(dict(bits='w4a4'))


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
    'word',
    ["quant_cfg.rules=[dict(match='*',skip=True)]", 'bits', 'a=[(b]'],
)
def test_options_that_cannot_be_read(word, capsys):
    with pytest.raises(SystemExit):
        arguments('--cfg-options', 'x=1', word)
    told = capsys.readouterr().err
    assert word in told and 'must be key=value' in told


def test_options_reach_the_recipe_of_the_command_line(tmp_path):
    """Each takes its own way into one quant_cfg, and none is lost."""
    words = ['--recipe', 'qdrop', '--cfg-options']
    words += ['quant_cfg.pass_args.Reconstruct.drop_prob=0.25']
    text = f"quant_cfg = dict(recipe='reg_ptq', bits='w4a4', rules={RULES})"
    cfg = load(tmp_path, text, *words, '--iters', '3')
    config = parse_quant_cfg(cfg.quant_cfg)
    assert config.rules[-1] == RULES[0] and config.user_rules == 1
    last = config.passes[-1]
    assert (last['drop_prob'], last['iters']) == (0.25, 3)
    assert [one['type'] for one in last['learn']] == [
        'AdaRound',
        'LearnedSteps',
    ]
    # passes of the config can be taken back
    words = ['--recipe', 'minmax', '--cfg-options', 'quant_cfg.passes=None']
    text = "quant_cfg = dict(bits='w4a4', passes=[dict(type='Observe')])"
    cfg = load(tmp_path, text, *words)
    assert len(parse_quant_cfg(cfg.quant_cfg).passes) == 3


@pytest.mark.parametrize(
    ('words', 'keys'),
    [
        ([], []),
        (['--bits', 'w6a6'], ['bits']),
        (['--recipe', 'qdrop'], ['rules', 'passes']),
        (['--iters', '3'], ['rules', 'passes']),
        (['--scope', 'backbone_only'], ['rules', 'passes']),
        (
            ['--cfg-options', 'quant_cfg.bits=w6a6'],
            ['rules', 'passes', 'calibration', 'bits'],
        ),
        (['--cfg-options', 'x=1'], []),
    ],
)
def test_what_the_command_line_asks_for(words, keys):
    cfg = Config(dict(quant_cfg=dict(recipe='qdrop', bits='w4a4')))
    args = arguments(*words)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    quant = parse_quant_cfg(quant_cfg_of(cfg, args))
    spelled = quant.to_dict()
    assert asked_of(args, quant) == {key: spelled[key] for key in keys}


def test_images_that_the_command_line_asks_for():
    args = arguments('--calib-num', '3')
    quant = parse_quant_cfg(quant_cfg_of(Config(), args))
    assert asked_of(args, quant) == dict(calibration=dict(num_samples=3))


def test_launcher(tmp_path):
    assert load(tmp_path, 'x = 1\n').launcher == 'none'
    cfg = load(tmp_path, 'x = 1\n', '--launcher', 'slurm')
    assert cfg.launcher == 'slurm'


def test_parts_of_a_config_of_this_package(tmp_path):
    """Are looked up where MMDetection has them; those of others stay."""
    ours, other = dict(_scope_='mmdet_ptq', x=1), dict(_scope_='mmpretrain')
    text = f'a = {ours}\nb = [dict(c=({ours}, {other}))]\n'
    cfg = load(tmp_path, text)
    assert cfg.a == dict(x=1)
    assert cfg.b == [dict(c=(dict(x=1), other))]


def test_config_of_the_model_zoo():
    zoo = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
    cfg = load_config(arguments('a.pth', config=zoo))
    assert cfg.model.type == 'YOLOX'
    assert cfg.work_dir == 'work_dirs/yolox_tiny_8xb8-300e_coco'
    with pytest.raises(QuantConfigError, match=r'none\.py cannot be loaded'):
        load_config(arguments('a.pth', config='mmdet::yolox/none.py'))


def test_load_from_without_a_checkpoint(tmp_path):
    path = tmp_path / 'my_config.py'
    path.write_text("load_from = 'mine.pth'\n")
    assert load_config(arguments(config=path)).load_from == 'mine.pth'
    cfg = load_config(arguments('a.pth', config=path))
    assert cfg.load_from == 'a.pth'


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
