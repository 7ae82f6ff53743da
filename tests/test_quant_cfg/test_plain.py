# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Configs as plain types."""

from mmengine.config import ConfigDict

from mmdet_ptq.quant_cfg.plain import plain


def test_a_deep_copy_of_plain_types():
    given = ConfigDict(a=dict(b=[1, (2, dict(c=None))]))
    found = plain(given)
    assert found == dict(a=dict(b=[1, [2, dict(c=None)]]))
    assert type(found) is type(found['a']) is dict
    assert type(found['a']['b'][1][1]) is dict
    found['a']['b'][1][1]['c'] = 3
    assert given.a.b[1][1].c is None


def test_scopes_of_inherited_parts_are_left_out():
    assert plain([dict(type='Observe', _scope_='mmdet_ptq')]) == [
        dict(type='Observe')
    ]
