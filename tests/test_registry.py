# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Parts by name, and what is said of a name that is wrong."""

import pytest
from mmengine.registry import Registry
from torch import nn

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.registry import (
    TwinRegistry,
    allowed_arguments,
    build_from,
    check_arguments,
    find_class,
)

PARTS = Registry('part', scope='mmdet_ptq')


class Base:
    def __init__(self, size=1):
        self.size = size


@PARTS.register_module()
class Sized(Base):
    """Hands on what it does not know."""

    def __init__(self, colour='red', **more):
        super().__init__(**more)
        if colour == 'none':
            raise ValueError('no such colour')
        self.colour = colour


def test_arguments_of_all_bases_count():
    assert allowed_arguments(Sized) == ['colour', 'size']
    built = build_from(PARTS, dict(type='Sized', size=3), colour='blue')
    assert (built.size, built.colour) == (3, 'blue')
    # what the config says wins
    cfg = dict(type='Sized', colour='green')
    assert build_from(PARTS, cfg, colour='blue').colour == 'green'
    assert cfg == dict(type='Sized', colour='green')


@pytest.mark.parametrize(
    ('cfg', 'says'),
    [
        (dict(type='Sizes'), r"here: unknown part 'Sizes'.*mean 'Sized'"),
        (dict(type=3), 'here: unknown part 3'),
        (dict(size=3), "here: expected a dict with a 'type'"),
        ('Sized', "here: expected a dict with a 'type'"),
        (dict(type='Sized', sise=3), r"'sise'.*mean 'size'.*Allowed: colour"),
    ],
)
def test_mistakes_are_named(cfg, says):
    for function in (check_arguments, build_from):
        with pytest.raises(QuantConfigError, match=says):
            function(PARTS, cfg, 'here')


def test_what_a_class_refuses_is_told_with_its_place():
    with pytest.raises(QuantConfigError, match='part: Sized: no such'):
        build_from(PARTS, dict(type='Sized', colour='none'))


def test_a_class_by_name():
    assert find_class(PARTS, 'Sized') is Sized
    with pytest.raises(QuantConfigError, match='Allowed: Sized'):
        find_class(PARTS, 'Base')


def test_twins_are_of_exactly_one_class():
    twins = TwinRegistry('twin')

    @twins.implements(nn.Linear, nn.Conv2d)
    class Twin:
        pass

    assert twins.get(nn.Linear) is twins.get(nn.Conv2d) is Twin
    assert nn.Linear in twins and nn.Bilinear not in twins
    # a subclass may compute something else
    assert twins.get(nn.LazyLinear) is None
    assert twins.twins() == {Twin}
    with pytest.raises(KeyError, match='already has a twin'):
        twins.implements(nn.Linear)(Twin)
