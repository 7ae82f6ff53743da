# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The loss of the outputs, and what passes that look at it refuse."""

import math
from collections import Counter

import pytest
import torch
from crossings import crossings
from task_loss_kit import inside, quantize

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import float_mode

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


@pytest.mark.parametrize(
    ('kind', 'args', 'match'),
    [
        ('ChooseExponents', dict(exponents=[]), 'exponents'),
        ('ChooseExponents', dict(exponents=[0.0]), 'above 0'),
        ('ChooseExponents', dict(images=0), 'images'),
        ('ChooseExponents', dict(loss=dict(type='Detect')), 'DetectionLoss'),
        (
            'ChooseExponents',
            dict(observer=dict(type='MinMaxObserver')),
            'LpObserver',
        ),
        ('LAPQ', dict(exponents=[2.0, 3.0]), '3 or more'),
        ('LAPQ', dict(powell_iters=-1), 'powell_iters'),
        ('LAPQ', dict(width=1.0), 'width'),
        ('LAPQ', dict(evaluations=0), 'evaluations'),
    ],
)
def test_bad_arguments(kind, args, match):
    with pytest.raises((QuantConfigError, ValueError), match=match):
        quantize(kind, **args)


def test_an_evaluation_waits_for_the_device_once():
    def look(session, task):
        names = set(session.layers)
        with torch.no_grad(), float_mode(session.model), crossings() as plain:
            for j in task.images.mine:
                task.images.run(j)
        counts = []
        for changed in (None, {'tower'}, set()):
            with crossings() as found:
                task(names, changed)
            counts.append(found - plain)
        return counts

    assert inside(look) == [Counter(tolist=1)] * 3


def test_what_did_not_change_is_not_computed():
    def look(session, task):
        names = set(session.layers)
        whole = task(names)
        start = task.prefix.computed
        session.layers['tower'].weight_quantizer.set_range(
            -torch.ones(8), torch.ones(8)
        )
        part = task(names, {'tower'})
        # two calls of the tower and two of the layer after it
        assert task.prefix.computed - start == 4 * len(task.images.mine)
        # a layer that was switched is noticed without a word
        start = task.prefix.computed
        fewer = task(names - {'tower'}, set())
        assert task.prefix.computed - start == 4 * len(task.images.mine)
        return whole, part, task(names), fewer, task(names - {'tower'})

    whole, part, again, fewer, switched = inside(look)
    assert part == again != whole
    assert fewer == switched != part


def test_a_worse_loss_is_not_taken_to_its_end():
    def look(session, task):
        names = set(session.layers)
        task(set(session.layers))
        best = list(task.values)
        # at the first image more than all images may have
        less = [v / 10 for v in best]
        stopped, looked = task(names, set(), less), len(task.values)
        ended = task(names, set(), best)
        assert len(task.values) == len(best) == 8
        return stopped, looked, ended, task(names), best

    stopped, looked, ended, whole, best = inside(look)
    # a GPU would be waited for after each image
    assert looked < 8 or torch.get_default_device().type != 'cpu'
    assert ended == whole == pytest.approx(sum(best) / 8)
    # all images lost ten times as much as those that it compares with
    assert stopped == pytest.approx(whole)


def test_a_loss_that_is_no_number_is_the_worst():
    def look(session, task):
        with torch.no_grad():
            session.layers['tower'].weight.fill_(math.nan)
        return task(set(session.layers))

    assert inside(look) == math.inf
