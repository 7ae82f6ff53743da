# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Shares and histograms."""

import pytest
from report_kit import HOSTILE, harmless, histogram

from mmdet_ptq.report.charts import columns, grid_histogram, stacked


def boxes_of(made):
    rects = [a for t, a in harmless(made).tags if t == 'rect']
    return [a for a in rects if float(a['height']) != 10]


def test_shares_add_up():
    kinds = [('k0', 'kept'), ('k1', HOSTILE)]
    made = stacked('n', [(HOSTILE, [3, 1]), ('none', [0, 0])], kinds)
    widths = [float(a['width']) for a in boxes_of(made)]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.05)
    assert widths[2:] == [0, 0]


def test_columns_are_as_high_as_their_counts():
    made = columns('n', [('a', [4, 1, 0])], (0, 1), 'x', 'boxes')
    heights = [float(a['height']) for a in boxes_of(made)]
    assert heights == pytest.approx([120, 30, 0], abs=0.1)


def test_a_grid_has_its_ends_and_values():
    made = grid_histogram('n', histogram(1, [0.0, 3.5]))
    assert made.count('class="end"') == 2
    assert made.count('class="level"') == 4
    assert '>3.5<' in made
    assert '8 grids' in grid_histogram('n', histogram(8))
