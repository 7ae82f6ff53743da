# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules that are gone, and rules that are kept."""

import pytest

from mmdet_ptq.quant_cfg.inherit import replaced_rules

NECK = "dict(match='neck.*', act=dict(bits=8))"
MASK = "dict(match='@mask', skip=True)"


@pytest.fixture
def write(tmp_path):
    def put(name, text):
        (tmp_path / f'{name}.py').write_text(text)
        return str(tmp_path / f'{name}.py')

    put('base', f"quant_cfg = dict(recipe='uniform', rules=[{NECK}])\n")
    put('plain', 'x = 1\n')
    return put


def test_rules_of_a_base_that_are_replaced_are_told(write):
    text = (
        f"_base_ = ['plain.py', 'base.py']\nquant_cfg = dict(rules=[{MASK}])"
    )
    path = write('own', text)
    (note,) = replaced_rules(path)
    for part in (path, 'those of base.py', "'neck.*'", '*_base_.quant_cfg'):
        assert part in note
    assert "'@mask'" not in note
    # and by one that inherits from it nothing more is lost
    assert replaced_rules(write('more', "_base_ = 'own.py'\ny = 1\n")) == []


@pytest.mark.parametrize(
    'text',
    [
        "_base_ = 'base.py'\n",
        "_base_ = 'base.py'\nquant_cfg = dict(bits='w4a4')\n",
        f"_base_ = 'base.py'\nquant_cfg = dict(rules=[{NECK}, {MASK}])\n",
        "_base_ = 'base.py'\n"
        f'quant_cfg = dict(rules=[*_base_.quant_cfg.rules, {MASK}])\n',
        f"_base_ = 'plain.py'\nquant_cfg = dict(rules=[{MASK}])\n",
        # of all that a base says nothing is wanted
        "_base_ = 'base.py'\nquant_cfg = dict(_delete_=True, bits='w4a4')\n",
        f'quant_cfg = dict(rules=[{MASK}])\n',
        "quant_cfg = 'uniform'\n",
        'x = 1\n',
    ],
)
def test_nothing_is_told_where_nothing_is_lost(write, text):
    assert replaced_rules(write('own', text)) == []


def test_no_rules_replace_those_of_a_base(write):
    text = "_base_ = 'base.py'\nquant_cfg = dict(rules=[])\n"
    (note,) = replaced_rules(write('own', text))
    told = "those of base.py, {'match': 'neck.*', 'act': {'bits': 8}}; "
    assert told in note


def test_a_config_of_an_installed_package():
    """Found as MMEngine finds it; it replaces no rule."""
    zoo = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
    assert replaced_rules(zoo) == []
