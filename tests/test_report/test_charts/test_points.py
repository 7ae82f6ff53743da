# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Dots are where their two numbers are."""

import pytest
from report_kit import HOSTILE, harmless

from mmdet_ptq.report.charts import points


def tags(made, kind):
    return [a for t, a in harmless(made).tags if t == kind]


def test_places():
    dots = [(HOSTILE, 1.0, 0.0, 0), ('b', 2.0, 1.0, 1), ('c', 4.0, 0.5, 0)]
    made = points('name', dots, ['x', HOSTILE], ('size', 'AP'))
    a, b, c = (
        (float(d['cx']), float(d['cy']), d['class'])
        for d in tags(made, 'circle')
    )
    # three times as far across, half as high up
    assert c[0] - a[0] == pytest.approx(3 * (b[0] - a[0]), abs=0.1)
    assert a[1] - c[1] == pytest.approx((a[1] - b[1]) / 2, abs=0.1)
    assert [d[2] for d in (a, b, c)] == ['f0', 'f1', 'f0']


def test_a_line_joins_the_front_and_a_height_is_marked():
    dots = [('a', 1.0, 0.2, 0), ('b', 3.0, 0.6, 0)]
    front = [(1.0, 0.2), (3.0, 0.6)]
    made = points('n', dots, ['x'], ('size', 'AP'), front, 0.4)
    (path,) = tags(made, 'path')
    ends = [(float(d['cx']), float(d['cy'])) for d in tags(made, 'circle')]
    assert path['d'] == 'M' + 'L'.join(f'{x} {y}' for x, y in ends)
    (mark,) = (a for a in tags(made, 'line') if a.get('class') == 'zero')
    middle = (ends[0][1] + ends[1][1]) / 2
    assert float(mark['y1']) == pytest.approx(middle, abs=0.1)
    bare = points('n', dots, ['x'], ('size', 'AP'))
    assert not tags(bare, 'path')


def test_nothing_known_or_all_the_same():
    assert not tags(points('n', [], ['x'], ('', '')), 'circle')
    nothing = points('n', [('a', None, 1.0, 0)], ['x'], ('', ''))
    assert not tags(nothing, 'circle')
    same = points('n', [('a', 0.0, 0.0, 0)] * 2, ['x'], ('', ''))
    assert len(tags(same, 'circle')) == 2
