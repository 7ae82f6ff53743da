# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Recipes by name, from files, and inherited."""

import shutil

import pytest
from cfg_kit import PASSES, RULE

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg, recipe_names
from mmdet_ptq.quant_cfg.recipes import RECIPE_DIR


def test_recipes_are_spelled_out():
    for name in recipe_names():
        config = parse_quant_cfg(dict(recipe=name, bits='w4a6'))
        assert config.recipe == name
        assert config.bits == (4, 6, 6)
        again = parse_quant_cfg(config.to_dict())
        assert again.to_dict() == config.to_dict()
        assert len(config.built_passes) == len(config.passes)


def test_rules_beside_a_recipe_come_after_its_own():
    own = load_recipe('minmax')
    mine = dict(match='@head', weight=dict(bits=3))
    config = parse_quant_cfg(dict(recipe='minmax', rules=[mine]))
    assert config.rules == [*own['rules'], mine]
    assert config.passes == own['passes']
    assert config.user_rules == 1


def test_passes_beside_a_recipe_replace_its_own():
    config = parse_quant_cfg(dict(recipe='uniform', passes=PASSES[1:]))
    assert config.passes == PASSES[1:]
    assert config.rules == load_recipe('uniform')['rules']


def test_recipe_file(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        f'rules = [{RULE!r}]\npasses = {PASSES!r}\n'
        "bits = 'w3a3'\ncalibration = dict(num_samples=7)\n"
    )
    config = parse_quant_cfg(dict(recipe=str(path), calibration=dict(seed=3)))
    assert (config.recipe, str(config.bits)) == ('mine', 'w3a3')
    assert (config.calibration.num_samples, config.calibration.seed) == (7, 3)
    assert (
        str(parse_quant_cfg(dict(recipe=str(path), bits='w8a8')).bits)
        == 'w8a8'
    )
    path.write_text('rulez = []')
    with pytest.raises(QuantConfigError, match=r"'rulez'.*'rules'"):
        load_recipe(str(path))


def recipe_in(folder, text):
    path = folder / 'mine.py'
    path.write_text(text)
    return str(path)


def test_recipe_that_inherits_a_shipped_one(tmp_path):
    """From anywhere, by its path; one line makes the difference."""
    base = f'_base_ = {str(RECIPE_DIR / "qdrop.py")!r}\n'
    own = load_recipe('qdrop')
    found = load_recipe(
        recipe_in(
            tmp_path, base + 'pass_args = dict(Reconstruct=dict(iters=7))\n'
        )
    )
    assert found.pop('passes') == [
        *own['passes'][:-1],
        dict(own['passes'][-1], iters=7),
    ]
    assert found == dict(rules=own['rules'])
    found = load_recipe(
        recipe_in(
            tmp_path,
            base + "rules = [*_base_.rules, dict(match='@mask', skip=True)]\n"
            "passes = [_base_.passes[0], dict(type='Observe')]\n",
        )
    )
    assert found['rules'] == [*own['rules'], dict(match='@mask', skip=True)]
    assert found['passes'] == PASSES


def test_recipes_can_be_copied(tmp_path):
    """Folder and all, to be edited."""
    shutil.copytree(RECIPE_DIR, tmp_path, dirs_exist_ok=True)
    for name in recipe_names():
        assert load_recipe(str(tmp_path / f'{name}.py')) == load_recipe(name)


def test_arguments_inherited_by_a_recipe_of_a_recipe(tmp_path):
    base = f'_base_ = {str(RECIPE_DIR / "pd_quant.py")!r}\n'
    args = 'pass_args = dict(Reconstruct=dict(drop_prob=0.25))\n'
    last = load_recipe(recipe_in(tmp_path, base + args))['passes'][-1]
    own = load_recipe('pd_quant')['passes'][-1]
    assert own['separate_global'] and own['drop_prob'] == 0.5
    assert last == dict(own, drop_prob=0.25)
    # beside the recipe they count last
    config = parse_quant_cfg(
        dict(
            recipe=recipe_in(tmp_path, base + args),
            pass_args=dict(Reconstruct=dict(drop_prob=0.75)),
        )
    )
    assert config.passes[-1] == dict(own, drop_prob=0.75)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ("_base_ = './no_such.py'", 'no_such.py'),
        ('passes = [', 'mine.py'),
        ("recipe = 'qdropp'", "Did you mean 'qdrop'"),
        ('rules = dict()', r'recipe mine\.py\.rules: expected a list'),
        ('quant_cfg = dict(rulez=[])', "'rulez'.*'rules'"),
        ("quant_cfg = dict()\nbits = 'w4a4'", "unknown key 'quant_cfg'"),
        ('passes = [undefined]', 'undefined'),
        ('helper = [1]\npasses = []', "'helper'.*Allowed"),
        ('pass_args = dict(Reconstruct=dict(iters=1))', 'Reconstruct'),
    ],
)
def test_bad_recipe_file(tmp_path, text, says):
    with pytest.raises(QuantConfigError, match=says):
        load_recipe(recipe_in(tmp_path, text))


def test_pass_args_change_single_arguments():
    whole = parse_quant_cfg(dict(recipe='brecq', bits='w4a4'))
    found = parse_quant_cfg(
        dict(
            recipe='brecq',
            bits='w4a4',
            pass_args=dict(Reconstruct=dict(iters=7)),
        )
    )
    kinds = [p['type'] for p in found.passes]
    assert kinds == [p['type'] for p in whole.passes]
    assert [p.get('iters') for p in found.passes] == [
        None,
        None,
        None,
        None,
        7,
        7,
    ]
    assert found.passes[4]['learn'] == whole.passes[4]['learn']


def kinds(**quant_cfg):
    found = parse_quant_cfg(dict(bits='w4a4', **quant_cfg))
    return [p['type'] for p in found.passes]


def test_equalize_adds_a_pass_behind_the_fold_or_takes_it_out(tmp_path):
    plain = kinds(recipe='gptq')
    found = kinds(recipe='gptq', equalize=True)
    assert found == [plain[0], 'EqualizeChannels', *plain[1:]]
    own = recipe_in(tmp_path, "recipe = 'gptq'\nequalize = True\n")
    assert kinds(recipe=own) == found
    assert kinds(recipe=own, equalize=True) == found
    assert kinds(recipe=own, equalize=False) == plain
    assert kinds(recipe='gptq', equalize=False) == plain


def test_both_switches_in_any_order():
    plain = kinds(recipe='uniform')
    expected = [plain[0], 'EqualizeChannels', 'ScaleInputs', *plain[1:]]
    assert kinds(recipe='uniform', equalize=True, scale_inputs=True) == (
        expected
    )
    assert kinds(recipe='uniform', scale_inputs=True, equalize=True) == (
        expected
    )
    assert kinds(recipe='uniform', scale_inputs=True) == [
        plain[0],
        'ScaleInputs',
        *plain[1:],
    ]


def test_heads_are_mixed_first(tmp_path):
    plain = kinds(recipe='gptq')
    expected = [plain[0], 'MixHeads', *plain[1:]]
    assert plain[1] == 'ScaleInputs'
    assert kinds(recipe='gptq', mix_heads=True) == expected
    assert kinds(recipe='gptq', mix_heads=True, equalize=True)[:4] == [
        plain[0],
        'MixHeads',
        'EqualizeChannels',
        'ScaleInputs',
    ]
    own = recipe_in(tmp_path, "recipe = 'gptq'\nmix_heads = True\n")
    assert kinds(recipe=own) == expected
    assert kinds(recipe=own, mix_heads=False) == plain


def test_the_second_switch_goes_behind_the_first_of_another_file(tmp_path):
    own = recipe_in(tmp_path, "recipe = 'uniform'\nequalize = True\n")
    found = kinds(recipe=own, scale_inputs=True)
    assert found[1:3] == ['EqualizeChannels', 'ScaleInputs']
    own = recipe_in(tmp_path, "recipe = 'uniform'\nscale_inputs = True\n")
    assert kinds(recipe=own, equalize=True) == found


def test_equalize_has_arguments():
    found = parse_quant_cfg(
        dict(
            recipe='uniform',
            bits='w4a4',
            equalize=True,
            pass_args=dict(EqualizeChannels=dict(choose='closed')),
        )
    )
    assert found.passes[1] == dict(type='EqualizeChannels', choose='closed')


@pytest.mark.parametrize(
    ('quant_cfg', 'match'),
    [
        (dict(recipe='gptq', equalize=1), 'expected a bool, got 1'),
        (
            dict(
                rules=[dict(match='*', act=dict(type='UniformQuantizer'))],
                passes=[dict(type='Observe'), dict(type='SetRanges')],
                equalize=True,
            ),
            'have no FoldBatchNorm',
        ),
        (
            dict(
                recipe='gptq',
                pass_args=dict(EqualizeChannels=dict(alpha=1.0)),
            ),
            'EqualizeChannels',
        ),
    ],
)
def test_bad_equalize(quant_cfg, match):
    with pytest.raises(QuantConfigError, match=match):
        parse_quant_cfg(dict(bits='w4a4', **quant_cfg))


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (dict(Reconstrct=dict(iters=7)), 'Reconstruct'),
        (dict(Reconstruct=7), 'expected a dict'),
        (dict(Reconstruct=dict(iter=7)), 'iters'),
    ],
)
def test_bad_pass_args(args, match):
    with pytest.raises(QuantConfigError, match=match):
        parse_quant_cfg(dict(recipe='qdrop', bits='w4a4', pass_args=args))


def test_a_recipe_that_starts_from_another_by_name(tmp_path):
    own = load_recipe('qdrop')
    path = tmp_path / 'mine.py'
    path.write_text(
        "_first = 3\nrecipe = 'qdrop'\nbits = 'w3a3'\n"
        "rules = [dict(match='@mask', skip=True)]\n"
        'pass_args = dict(Reconstruct=dict(iters=_first))\n'
        'calibration = dict(seed=4)\n'
    )
    found = load_recipe(str(path))
    assert found == dict(
        bits='w3a3',
        rules=[*own['rules'], dict(match='@mask', skip=True)],
        passes=[*own['passes'][:-1], dict(own['passes'][-1], iters=3)],
        calibration=dict(seed=4),
    )
    # and so on, by a path beside it
    more = tmp_path / 'more.py'
    more.write_text(
        "recipe = './mine.py'\nbits = 'w2a2'\n"
        'calibration = dict(num_samples=5)\n'
        'pass_args = dict(Reconstruct=dict(drop_prob=0.25))\n'
    )
    found = load_recipe(str(more))
    last = dict(own['passes'][-1], iters=3, drop_prob=0.25)
    assert found['passes'][-1] == last
    assert found['calibration'] == dict(seed=4, num_samples=5)
    config = parse_quant_cfg(dict(recipe=str(more), rules=[RULE]))
    assert (str(config.bits), config.user_rules) == ('w2a2', 1)
    assert config.rules == [*found['rules'], RULE]


def test_a_recipe_that_starts_from_itself(tmp_path):
    for a, b in (('mine', 'more'), ('more', 'mine')):
        (tmp_path / f'{a}.py').write_text(f"recipe = '{b}.py'\n")
    with pytest.raises(QuantConfigError, match=r'mine\.py.*from itself'):
        load_recipe(str(tmp_path / 'mine.py'))
