# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grammar of quant_cfg, without a model."""

import shutil

import pytest

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg import (
    Bits,
    load_recipe,
    parse_bits,
    parse_quant_cfg,
    recipe_names,
)
from mmdet_ptq.quant_cfg.recipes import RECIPE_DIR
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.registry import QUANTIZERS

RULE = dict(match='*', weight=dict(type='UniformQuantizer'))
PASSES = [dict(type='FoldBatchNorm'), dict(type='Observe')]


@pytest.mark.parametrize(
    ('text', 'bits', 'back'),
    [
        ('w4a4', (4, 4, 4), 'w4a4'),
        ('w4a8', (4, 8, 8), 'w4a8'),
        ('W2A3S8', (2, 3, 8), 'w2a3s8'),
        ('w4a8s8', (4, 8, 8), 'w4a8'),
    ],
)
def test_bits(text, bits, back):
    assert parse_bits(text) == Bits(*bits)
    assert str(parse_bits(text)) == back


@pytest.mark.parametrize(
    'text',
    ['w1a8', 'w8a9', 'w4a4s1', 'a4w4', 'w4', 'w4a4 ', '', 8, None, 'w-4a4'],
)
def test_bad_bits(text):
    with pytest.raises(QuantConfigError, match='bit'):
        parse_bits(text)


def test_recipes_are_spelled_out():
    for name in recipe_names():
        config = parse_quant_cfg(dict(recipe=name, bits='w4a6'))
        assert config.recipe == name
        assert config.bits == (4, 6, 6)
        again = parse_quant_cfg(config.to_dict())
        assert again.to_dict() == config.to_dict()
        assert len(config.build_passes()) == len(config.passes)


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
        ('passes = [undefined]', 'undefined'),
        ('helper = [1]\npasses = []', "'helper'.*Allowed"),
        ('pass_args = dict(Reconstruct=dict(iters=1))', 'Reconstruct'),
    ],
)
def test_bad_recipe_file(tmp_path, text, says):
    with pytest.raises(QuantConfigError, match=says):
        load_recipe(recipe_in(tmp_path, text))


def test_input_is_not_changed():
    given = dict(rules=[dict(match='*', act=dict())], passes=PASSES)
    config = parse_quant_cfg(given)
    config.rules[0]['act']['bits'] = 3
    assert given['rules'] == [dict(match='*', act=dict())]


@pytest.mark.parametrize(
    ('quant_cfg', 'says'),
    [
        ([], 'expected a dict'),
        (dict(recipe=3), 'recipe.*expected a str'),
        (dict(rules='*', passes=PASSES), 'rules.*expected a list'),
        (dict(rules=[RULE], passes=dict(type='Observe')), 'passes.*a list'),
        (dict(rules=['*'], passes=PASSES), r'rules\[0\].*expected a dict'),
        (dict(rules=[RULE], passes=['Observe']), r'passes\[0\]'),
        (dict(rules=[RULE]), "'rules' and 'passes'"),
        (dict(rules=[dict(weight={})], passes=PASSES), r'rules\[0\].*match'),
        (dict(rules=[dict(match='*')], passes=PASSES), 'says nothing'),
        (dict(rules=[dict(match=[], skip=True)], passes=PASSES), 'match'),
        (dict(rules=[dict(match=['*', 3])], passes=PASSES), 'match'),
        (
            dict(rules=[dict(match='*', weight=4)], passes=PASSES),
            r'rules\[0\]\.weight.*4',
        ),
        (
            dict(rules=[dict(match='*', act=dict(bits=4.0))], passes=PASSES),
            r'act\.bits: 4\.0',
        ),
        (
            dict(rules=[dict(match='*', act=dict(bits=True))], passes=PASSES),
            r'act\.bits: True',
        ),
        (dict(recipe='uniform', calibration=[1]), 'calibration.*a dict'),
        (
            dict(recipe='uniform', calibration=dict(num_samples=0)),
            'num_samples',
        ),
        (dict(recipe='uniform', calibration=dict(num_samples=True)), 'True'),
        (dict(recipe='uniform', calibration=dict(seed=-1)), 'seed'),
        (dict(recipe='uniform', calibration=dict(source=4)), 'source'),
        (
            dict(
                rules=[dict(match='*', weight=dict(group_size=0))],
                passes=PASSES,
            ),
            'group_size',
        ),
    ],
)
def test_refused(quant_cfg, says):
    with pytest.raises(QuantConfigError, match=says):
        parse_quant_cfg(quant_cfg)


@pytest.fixture
def toy():
    """A second quantizer, with an argument of its own."""

    class ToyQuantizer(UniformQuantizer):
        def __init__(self, bits=8, knob=1, role='act', axis=None):
            super().__init__(bits, role=role, axis=axis)

    QUANTIZERS.register_module(module=ToyQuantizer)
    yield
    QUANTIZERS.module_dict.pop('ToyQuantizer')


def test_arguments_of_an_earlier_type(toy):
    typed = dict(match='*', weight=dict(type='ToyQuantizer'))
    more = dict(match='@head', weight=dict(knob=3))
    parse_quant_cfg(dict(rules=[typed, more], passes=PASSES))
    with pytest.raises(QuantConfigError, match=r"rules\[0\].*'knob'"):
        parse_quant_cfg(dict(rules=[more, typed], passes=PASSES))
    wrong = dict(match='@head', act=dict(knob=3))
    with pytest.raises(QuantConfigError, match=r"rules\[1\]\.act.*'knob'"):
        parse_quant_cfg(dict(rules=[typed, wrong], passes=PASSES))


@pytest.mark.parametrize(
    'act',
    [
        dict(granularity='group'),
        dict(granularity='group', group_size=4),
        dict(group_size=4),
        dict(per_level=True),
        dict(symmetric=True),
    ],
)
def test_accepted(act):
    parse_quant_cfg(
        dict(recipe='uniform', rules=[dict(match='*', act=act, weight=None)])
    )


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


SUBSET = dict(type='SubsetQuantizer')


def test_widths_that_a_named_quantizer_lacks():
    rule = dict(match='*', weight=dict(SUBSET, bits=8))
    with pytest.raises(QuantConfigError) as error:
        parse_quant_cfg(dict(recipe='subsetq', rules=[rule]))
    # counted among the user's rules
    assert str(error.value).startswith('rules[0].weight: ')
    assert 'SubsetQuantizer must be 2, 3 or 4, got 8' in str(error.value)


@pytest.mark.parametrize(
    ('rules', 'bits', 'ok'),
    [
        ([dict(match='*', weight=SUBSET)], 'w4a8', True),
        ([dict(match='*', weight=SUBSET)], 'w5a8', False),
        ([dict(match='*', weight=SUBSET)], None, True),
        # what other rules may change is left to the plan
        (
            [
                dict(match='*', weight=SUBSET),
                dict(match='@head', weight=dict(bits=3)),
            ],
            'w8a8',
            True,
        ),
        (
            [
                dict(match='@head', weight=dict(bits=3)),
                dict(match='*', weight=SUBSET),
            ],
            'w8a8',
            True,
        ),
        (
            [
                dict(match='*', weight=SUBSET),
                dict(match='*', weight=dict(type='UniformQuantizer')),
            ],
            'w8a8',
            True,
        ),
        # bits of another kind of tensor change nothing
        (
            [dict(match='*', weight=SUBSET, act=dict(bits=4))],
            'w8a8',
            False,
        ),
    ],
)
def test_default_widths_that_a_quantizer_lacks(rules, bits, ok):
    cfg = dict(rules=rules, passes=PASSES, bits=bits)
    if ok:
        parse_quant_cfg(cfg)
        return
    with pytest.raises(QuantConfigError, match=r'^rules\[0\]\.weight.*3 or 4'):
        parse_quant_cfg(cfg)


def test_places_of_rules():
    config = parse_quant_cfg(
        dict(recipe='minmax', rules=[dict(match='@head', skip=True)])
    )
    count = len(load_recipe('minmax')['rules'])
    assert config.place(count) == 'rules[0]'
    assert config.place(1) == 'recipe minmax: rules[1]'
    assert config.own_rules() == [(count, dict(match='@head', skip=True))]
