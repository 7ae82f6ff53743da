# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Parts by name, and what is said of a name that is wrong."""

import math
from typing import Any, get_args

import pytest
from mmengine.registry import Registry
from torch import nn

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.registry import (
    LEARNERS,
    LOSSES,
    OBSERVERS,
    PASSES,
    QUANTIZERS,
    TwinRegistry,
    arguments_of,
    build_from,
    check_arguments,
    find_class,
)

AR = dict(type='AdaRound')
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
    assert list(arguments_of(Sized)) == ['colour', 'size']
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


REGISTRIES = (QUANTIZERS, OBSERVERS, PASSES, LEARNERS, LOSSES)


def arguments():
    """Each argument of each part that a ``quant_cfg`` can name."""
    for registry in REGISTRIES:
        registry.import_from_location()
        for name, cls in registry.module_dict.items():
            for argument, parameter in arguments_of(cls).items():
                yield registry, name, argument, parameter.annotation


@pytest.mark.parametrize(
    ('registry', 'name', 'argument', 'hint'),
    [pytest.param(*a, id=f'{a[1]}-{a[2]}') for a in arguments()],
)
def test_each_argument_of_each_part_has_a_type(registry, name, argument, hint):
    """A value of another type is told by name."""
    assert hint is not Any, 'write what the argument is'
    allowed = {hint, *get_args(hint)}
    if bool not in allowed:
        wrong = [True]
    else:
        wrong = ['no', 1] if str not in allowed else [1]
    wrong += [object(), [object()]]
    if not allowed & {dict, str}:
        wrong.append(dict())
    for value in wrong:
        cfg = {'type': name, argument: value}
        with pytest.raises(QuantConfigError, match=argument):
            build_from(registry, cfg, 'here')


@pytest.mark.parametrize(
    ('kind', 'cfg'),
    [
        (PASSES, dict(type='Reconstruct', learn='AdaRound')),
        (PASSES, dict(type='Reconstruct', learn=dict(type='AdaRound'))),
        (PASSES, dict(type='Reconstruct', learn=[AR], revert='no')),
        (PASSES, dict(type='Reconstruct', learn=[AR], losses=[])),
        (PASSES, dict(type='Reconstruct', learn=[AR], losses='L2Loss')),
        (PASSES, dict(type='Observe', observer=[])),
        (PASSES, dict(type='Observe', observer={})),
        (PASSES, dict(type='SetRanges', weight_observer='')),
        (PASSES, dict(type='LAPQ', loss={})),
        (PASSES, dict(type='LAPQ', exponents=[2, 3, 'a'])),
        (PASSES, dict(type='LAPQ', exponents=[2, 3, math.inf])),
        (PASSES, dict(type='ChooseExponents', exponents='123')),
        (LEARNERS, dict(AR, beta=('a', 2))),
        (LEARNERS, dict(AR, beta=(20,))),
        (LEARNERS, dict(AR, beta=(20, 0))),
        (LEARNERS, dict(AR, lr='0.1')),
        (LEARNERS, dict(AR, reg=math.inf)),
        (LEARNERS, dict(type='SubsetMultipliers', distance=(1, -1))),
        (LEARNERS, dict(type='LearnedSteps', cosine='no')),
        (LEARNERS, dict(type='LearnedCodebook', lr_k=True)),
        (LEARNERS, dict(type='LearnedWeights', lr_act='x')),
        (LOSSES, dict(type='DetectionLoss', mask='yes')),
        (LOSSES, dict(type='FisherLoss', of=[])),
        (
            PASSES,
            dict(
                type='Reconstruct',
                learn=[AR],
                losses=[dict(type='FisherLoss', of={})],
            ),
        ),
        (OBSERVERS, dict(type='LpObserver', p='2')),
        (OBSERVERS, dict(type='LpObserver', p=math.inf)),
        (OBSERVERS, dict(type='PercentileObserver', percentile=True)),
        (QUANTIZERS, dict(type='UniformQuantizer', symmetric='no')),
        (QUANTIZERS, dict(type='UniformQuantizer', per_level=1)),
    ],
)
def test_values_that_would_fail_or_be_taken_for_others(kind, cfg):
    with pytest.raises(QuantConfigError, match=cfg['type']):
        build_from(kind, cfg)


def test_a_string_is_no_list_of_letters():
    cfg = dict(type='AddNoise', amplitudes='0.5')
    with pytest.raises(QuantConfigError, match=r'list of numbers, got .0\.5'):
        build_from(PASSES, cfg)


@pytest.mark.parametrize(
    ('cfg', 'says'),
    [
        (dict(type='InitRanges'), 'now the passes Observe, SetRanges and'),
        (dict(type='ChooseNorms'), 'now the pass ChooseExponents'),
        (dict(type='LAPQ', norms=[2]), 'now exponents'),
        (dict(type='Reconstruct', keep_rate=0.5), 'drop_prob.*1 - keep_rate'),
        (dict(type='Reconstruct', asymmetric=True), 'input_distribution'),
    ],
)
def test_old_names_are_told_the_new_ones(cfg, says):
    with pytest.raises(QuantConfigError, match=says):
        check_arguments(PASSES, cfg, 'here')
