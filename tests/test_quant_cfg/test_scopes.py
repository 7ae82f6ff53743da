# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scopes by name: where their rules stand, and what is refused."""

import pytest

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg
from mmdet_ptq.quant_cfg.scopes import SCOPES, scope_rules

MINE = dict(match='@head', weight=dict(bits=3))


def rules(**quant_cfg):
    return parse_quant_cfg(dict(bits='w4a4', **quant_cfg)).rules


@pytest.mark.parametrize('name', SCOPES)
def test_between_the_rules_of_recipe_and_user(name):
    own = load_recipe('uniform')['rules']
    config = parse_quant_cfg(
        dict(recipe='uniform', bits='w4a4', scope=name, rules=[MINE])
    )
    assert config.rules == [*own, *SCOPES[name].rules, MINE]
    assert config.own_rules() == [(len(config.rules) - 1, MINE)]
    assert config.place(len(own) - 1) == 'recipe uniform: rules[4]'
    assert config.place(len(own)) == f'scope {name}: rules[0]'
    assert config.place(len(config.rules) - 1) == 'rules[0]'
    # spelled out it is rules and nothing else
    again = parse_quant_cfg(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert 'scope' not in config.to_dict()


def test_a_recipe_has_one_that_another_replaces(tmp_path):
    """Those of a recipe's own rules stay before it."""
    path = tmp_path / 'mine.py'
    path.write_text(f"recipe = 'minmax'\nscope = 'repq_det'\nrules = [{MINE}]")
    own = [*load_recipe('minmax')['rules'], MINE]
    mine = dict(recipe=str(path))
    assert rules(**mine) == [*own, *SCOPES['repq_det'].rules]
    found = rules(**mine, scope='backbone_only')
    assert found == [*own, *SCOPES['backbone_only'].rules]
    assert rules(**mine, scope='') == own
    more = tmp_path / 'more.py'
    more.write_text("recipe = './mine.py'\n")
    assert rules(recipe=str(more)) == rules(**mine)


def test_nobody_changes_a_scope():
    scope_rules('first_last_8')[0]['act']['bits'] = 2
    assert scope_rules('first_last_8')[0]['act']['bits'] == 8


@pytest.mark.parametrize(
    ('scope', 'says'),
    [
        ('repq', "unknown scope 'repq'. Did you mean 'repq_det'"),
        (['repq_det'], r'quant_cfg\.scope: expected a str'),
    ],
)
def test_wrong_scopes(scope, says):
    with pytest.raises(QuantConfigError, match=says):
        rules(recipe='uniform', scope=scope)


def test_a_scope_without_a_recipe():
    """Its rules would come before all others and lose to them."""
    cfg = load_recipe('uniform')
    with pytest.raises(QuantConfigError, match='there is no recipe'):
        rules(**cfg, scope='repq_det')
