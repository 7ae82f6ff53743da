# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grammar of ``quant_cfg``."""

import pytest
from cfg_kit import PASSES, RULE

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg import parse_quant_cfg


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
