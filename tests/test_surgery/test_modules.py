# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Modules by name, and where they hang."""

import pytest
from torch import nn

from mmdet_ptq.errors import PTQError
from mmdet_ptq.surgery.modules import find_module, places_of


def shared():
    norm = nn.BatchNorm2d(2)
    inner = nn.Sequential(norm, nn.ReLU())
    return norm, nn.Sequential(inner, norm, inner)


def test_any_of_its_names():
    norm, model = shared()
    assert find_module(model, '') is model
    assert find_module(model, '0.0') is norm
    assert find_module(model, '2.0') is norm is find_module(model, '1')


@pytest.mark.parametrize('name', ['3', '1.x', '0.0.weight', '0.9.1', '.'])
def test_no_such_module(name):
    with pytest.raises(PTQError, match='the model has no module'):
        find_module(shared()[1], name)


def test_every_parent_once():
    norm, model = shared()
    found = [(p, name) for p, name in places_of(model, norm)]
    assert len(found) == 2
    assert (model, '1') in found and (model[0], '0') in found


def test_a_parent_that_changes_meanwhile():
    norm, model = shared()
    for parent, name in places_of(model, norm):
        parent._modules[name] = nn.Identity()
    assert not list(places_of(model, norm))
    assert isinstance(model[2][0], nn.Identity)
