# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Areas are bits."""

import re

import pytest
from report_kit import HOSTILE, harmless

from mmdet_ptq.report.charts import budget


def one(part, bits, **elements):
    return dict(part=part, bits=bits, elements=elements)


LAYERS = {
    'first': one('stem', [8, 8], weight=10, input=30),
    'second': one('backbone', [2, 4], weight=30, input=60),
    'product': one('head', [6, 32], a=5, b=5),
}


def bars(markup):
    """Class, width and height of each bar, by its hint."""
    found = {}
    for text, title in re.findall(
        r'<rect ([^>]*)><title>(.*?)</title>', markup
    ):
        said = dict(re.findall(r'(\S+)="([^"]*)"', text))
        found.setdefault(title.split(':')[0], []).append(
            (said['class'], float(said['width']), float(said['height']))
        )
    return found


def test_width_is_share_and_height_is_bits():
    found = bars(budget(dict(layers=LAYERS), 'title'))
    (w1, i1), (w2, i2) = found['first'], found['second']
    a, b = found['product']
    assert [x[0] for x in (w1, i1, w2, i2, a, b)] == [
        *('b8', 'b8', 'b2', 'b4', 'b6', 'bfloat')
    ]
    # gaps are 0.4
    assert (w2[1] + 0.4) / (w1[1] + 0.4) == pytest.approx(3, abs=0.01)
    assert (i2[1] + 0.4) / (i1[1] + 0.4) == pytest.approx(2, abs=0.01)
    assert w1[2] / w2[2] == pytest.approx(4, abs=0.01)
    assert a[2] / i2[2] == pytest.approx(1.5, abs=0.01)
    # what is float has the full height
    assert b[2] == 100


def test_means_are_told():
    text = budget(dict(layers=LAYERS), 'title')
    assert 'weights: 3.50 bits on average' in text
    assert f'inputs: {(240 + 240 + 30 + 160) / 100:.2f} bits' in text


def test_nothing_to_draw():
    assert 'average' not in budget(dict(layers={}), 'title')
    only = {'product': LAYERS['product']}
    assert 'weights' not in budget(dict(layers=only), 'title')


def test_names_are_escaped():
    layers = {HOSTILE: one(HOSTILE, [4, 4], weight=1, input=1)}
    assert harmless(budget(dict(layers=layers), HOSTILE))
