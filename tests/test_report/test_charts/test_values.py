# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Dots and bars are where their numbers are."""

from report_kit import HOSTILE, Seen, harmless

from mmdet_ptq.report.charts import bars, intervals, paired


def test_dots_and_whiskers():
    rows = [('a', [(-1.0, -2.0, 0.0)]), (HOSTILE, [(0.0, None, None)])]
    made = intervals('name', rows, ['x'], 'change')
    seen = harmless(made)
    dots = [float(a['cx']) for t, a in seen.tags if t == 'circle']
    (whisker,) = (a for t, a in seen.tags if 'whisker' in a.get('class', ''))
    (zero,) = (a for t, a in seen.tags if a.get('class') == 'zero')
    assert dots[1] == float(zero['x1']) == float(whisker['x2'])
    # the middle of its whisker
    assert dots[0] * 2 == float(whisker['x1']) + float(whisker['x2'])


def test_nothing_known():
    assert 'circle' not in intervals('n', [('a', [(None,) * 3])], ['x'], '')
    assert Seen(bars('n', [('a', None)], 's')).tags


def test_bars_are_as_long_as_their_values():
    seen = harmless(bars('n', [(HOSTILE, 4.0), ('b', 1.0)], 'seconds'))
    long, short = (float(a['width']) for t, a in seen.tags if t == 'rect')
    assert long == 4 * short


def test_bars_in_pairs():
    rows = [('a', (4.0, 1.0)), (HOSTILE, (-2.0, None))]
    seen = harmless(paired('n', rows, ('x', HOSTILE), 'loss'))
    # two squares of the legend come first
    found = [a for t, a in seen.tags if t == 'rect'][2:]
    long, short, left = (float(a['width']) for a in found)
    assert abs(long - 4 * short) < 0.1 and abs(long - 2 * left) < 0.1
    # below 0 a bar ends where the others begin
    begin = float(found[0]['x'])
    assert abs(float(found[2]['x']) + left - begin) < 0.02
    assert float(found[1]['y']) == float(found[0]['y']) + 8
