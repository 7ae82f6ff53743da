# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scales and ticks."""

from xml.etree import ElementTree

import pytest
from report_kit import HOSTILE, harmless

from mmdet_ptq.report.markup import Html
from mmdet_ptq.report.svg import (
    across,
    box,
    chart,
    label,
    legend,
    picture,
    scale,
    short,
    ticks,
)


@pytest.mark.parametrize(
    ('low', 'high', 'count', 'found'),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.05, 0.01, 4, [-0.05, -0.04, -0.03, -0.02, -0.01, 0, 0.01]),
        (0, 830, 4, [0, 200, 400, 600, 800]),
        (3, 3, 5, [3]),
        (1e-6, 2e-6, 2, [1e-6, 1.5e-6, 2e-6]),
    ],
)
def test_ticks_are_round(low, high, count, found):
    assert ticks(low, high, count) == pytest.approx(found)


def test_a_scale_puts_ends_at_ends():
    place = scale(10, 20, 0, 100)
    assert [place(v) for v in (10, 15, 20)] == [0, 50, 100]
    # nothing to spread
    assert scale(1, 1, 5, 9)(1) == 5


def test_long_names_keep_their_end():
    assert short('abc', 3) == 'abc'
    assert short('backbone.layer1', 7) == '…layer1'


def test_text_in_a_chart_is_escaped():
    names, _ = legend([(HOSTILE, HOSTILE)], 0)
    place = scale(0, 1, 0, 1)
    parts = [label(0, 0, HOSTILE), box(0, 0, 1, 1, HOSTILE, HOSTILE), names]
    parts += across(place, [0, 1], 0, 1, HOSTILE)
    harmless(chart(HOSTILE, 10, *parts))


def test_a_picture_of_its_own_keeps_the_scale():
    """Twice as large as its units, the drawing in them one to one."""
    found = picture(chart('a', 100), HOSTILE, Html('text {}'))
    root = ElementTree.fromstring(found)
    assert root.get('viewBox') == '0 0 420 140'
    assert (root.get('width'), root.get('height')) == ('840', '280')
    inner = root[-1]
    assert (inner.get('width'), inner.get('height')) == ('400', '100')
    assert HOSTILE not in found
    with pytest.raises(ValueError, match='not from chart'):
        picture(Html('<p></p>'), 'a', Html(''))
