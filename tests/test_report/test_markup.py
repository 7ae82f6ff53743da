# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Markup that text cannot break."""

import pytest
from report_kit import HOSTILE, Seen

from mmdet_ptq.report.markup import (
    Html,
    details,
    esc,
    figure,
    grid,
    join,
    num,
    paragraph,
    table,
    tag,
)


@pytest.mark.parametrize(
    'made',
    [
        tag('p', HOSTILE, title=HOSTILE),
        table([HOSTILE], [[HOSTILE]]),
        figure(HOSTILE, HOSTILE, HOSTILE),
        details(HOSTILE, HOSTILE),
        grid(paragraph(HOSTILE)),
        join([HOSTILE, esc(HOSTILE)]),
        esc(num(HOSTILE)),
    ],
)
def test_text_stays_text(made):
    assert isinstance(made, Html)
    seen = Seen(made)
    assert {t for t, _ in seen.tags}.isdisjoint({'script', 'img'})
    assert HOSTILE in seen.text['']


def test_markup_is_not_escaped_twice():
    assert esc(esc('<')) == '&lt;'
    assert tag('b', tag('i', '<')) == '<b><i>&lt;</i></b>'


def test_attributes():
    made = tag('p', cls='a', stroke_width=2, viewBox='0', x=None)
    assert made == '<p class="a" stroke-width="2" viewBox="0"></p>'


@pytest.mark.parametrize(
    ('value', 'form', 'text'),
    [
        (0.12345, '.3f', '0.123'),
        (-0.5, '+.1f', '−0.5'),
        (1234, ',d', '1,234'),
        (None, '.3f', '–'),
        (float('nan'), '.3f', '–'),
        (float('inf'), '.3f', '–'),
        ('many', '.3f', 'many'),
        (True, '.3f', 'True'),
        (['<'], '.3f', "['<']"),
    ],
)
def test_numbers(value, form, text):
    assert num(value, form) == text
