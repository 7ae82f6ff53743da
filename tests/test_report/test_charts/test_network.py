# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Layers in the order in which they run."""

from report_kit import HOSTILE, harmless

from mmdet_ptq.report.charts import bits_class, bits_name, lines, strip

PARTS = ['stem', 'backbone', 'backbone', HOSTILE]


def test_a_cell_for_each_layer():
    rows = [('weight', [8, 4, 4, 32]), ('input', [8, 8, 8, None])]
    made = strip('n', rows, PARTS, [HOSTILE] * 4)
    rects = [a for t, a in harmless(made).tags if t == 'rect']
    cells = [a['class'] for a in rects if float(a['height']) == 26]
    assert cells == ['b8', 'b4', 'b4', 'bfloat', 'b8', 'b8', 'b8']


def test_a_curve_breaks_where_nothing_is_known():
    made = lines('n', [('a', [1.0, 2.0, None, 3.0])], PARTS, 'dB')
    (path,) = (a for t, a in harmless(made).tags if t == 'path')
    assert path['d'].count('M') == 2 and path['d'].count('L') == 1


def test_bits_in_words():
    assert [bits_name(b) for b in (4, 32)] == ['4 bits', 'float']
    assert [bits_class(b) for b in (2, 8, 16, 32)] == [
        'b2',
        'b8',
        'b8',
        'bfloat',
    ]
