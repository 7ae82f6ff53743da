# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is asked for, and what keeps to it."""

import pytest

from mmdet_ptq.engine.auto.goal import Goal, Trial, goal_of, share_words
from mmdet_ptq.errors import QuantConfigError


def trial(bits, drop, mb=1.0, bops=1.0, **given):
    return Trial('uniform', bits, drop=drop, mb=mb, bops=bops, **given)


def test_units():
    """Points, 10^6 bytes and 10^9 bit operations."""
    assert goal_of(dict(max_drop=0.5)) == Goal('max_drop', 0.005)
    assert goal_of(dict(target_size=12.5)) == Goal('target_size', 12.5)
    assert goal_of(dict(target_bops=3)) == Goal('target_bops', 3e9)
    assert goal_of(dict(max_drop=0)) == Goal('max_drop', 0.0)
    assert goal_of(dict(max_drop=None, recipe='gptq', bits='w4a4')) is None


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (
            dict(max_drop=0.5, bits='w4a4'),
            r'^--max-drop chooses recipe and bits by itself; leave --bits '
            r'out, or leave --max-drop out$',
        ),
        (dict(max_drop=0.5, recipe='gptq'), r'leave --recipe out'),
        (dict(target_size=3.0, recipe='gptq'), r'^--target-size chooses'),
        (dict(target_bops=3.0, print_recipe=True), r'leave --print-recipe o'),
        (
            dict(max_drop=0.5, target_size=3.0),
            r'^--max-drop and --target-size: give one goal, not several$',
        ),
        (dict(max_drop=-1.0), r'--max-drop must be a number of at least 0'),
        (dict(target_size=0.0), r'--target-size must be a number above 0'),
    ],
)
def test_refused_in_one_sentence(given, words):
    with pytest.raises(QuantConfigError, match=words):
        goal_of(given)


def test_fewest_operations_within_a_drop():
    goal = Goal('max_drop', 0.005)
    far, near, over = (
        trial('w8a8', 0.0, bops=64),
        trial('w6a6', 0.005, bops=36),
        trial('w4a4', 0.006, bops=16),
    )
    assert [goal.met(t) for t in (far, near, over)] == [True, True, False]
    assert goal.best([far, near, over]) is near
    assert goal.best([over]) is None
    # what was lost by rounding of the difference is none
    assert goal.met(trial('w4a8', 0.648 - 0.643))
    assert goal.nearest([trial('w4a4', 0.02), over]) is over


def test_least_loss_within_a_size():
    goal = Goal('target_size', 3.0)
    big = trial('w8a8', 0.0, mb=4.0)
    good, small = trial('w4a8', 0.01, mb=3.0), trial('w4a4', 0.02, mb=2.0)
    assert goal.best([big, small, good]) is good
    # of equals the smaller
    assert goal.best([good, trial('w3a8', 0.01, mb=2.0)]).bits == 'w3a8'
    assert goal.best([big]) is None
    assert goal.nearest([big, trial('w6a8', 0.0, mb=3.5)]).bits == 'w6a8'


def test_in_words():
    assert share_words(12.41, 36.5, 'MB') == '12.4 MB of 36.5, 34 %'
    assert Goal('max_drop', 0.005).words == (
        'Fewest bit operations with at most 0.5 points less'
    )
    assert Goal('target_bops', 3e9).words == ('Best within 3 G bit operations')
    assert trial('w4a4', 0.0).title == 'uniform w4a4'
    rules = [dict(match=['a'], weight=dict(bits=8))]
    assert trial('w4a4', 0.0, rules=rules).title == 'uniform w4a4 mixed'
    scoped = trial('w4a4', 0.0, scope='repq_det')
    assert scoped.title == 'uniform w4a4 repq_det'
