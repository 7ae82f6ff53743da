# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page of a measurement: whole, and harmless."""

import pytest
from report_kit import HOSTILE, harmless

from mmdet_ptq.report import check_words, sensitivity_page, suggested_words


def row(name, role=False, **given):
    values = dict(weight=0.5, act=0.25, spared_weight=0.1, spared_act=None)
    return dict(name=name, role=role, **{**values, **given})


def one(words='keep this layer float'):
    return dict(
        words=words, before=2.0, after=1.0, mb_before=1.0, mb_after=1.5
    )


def found(name='a'):
    return dict(
        about=dict(title=name, config=name, path=name),
        scores=dict(output=dict(all=dict(score=2.0))),
        layers={name: dict(own=0.1, received=0.0, total=None)},
        suggestion=dict(output=one(name)),
        check=dict(output=dict(pairs={name: [1.0, 0.1]}, spearman=0.5)),
    )


def test_every_section_has_content():
    rows = [row('a'), row('b', act=None), row('@neck', True)]
    text = sensitivity_page(found(), 'output', rows, 'rules = []\n')
    seen = harmless(text)
    ids = [a['id'] for t, a in seen.tags if t == 'section']
    assert ids == [
        'layers',
        'parts',
        'suggestion',
        'errors',
        'check',
        'table',
    ]
    assert text.count('<svg') == 6
    assert 'a loses most' in seen.text['layers']
    assert '@neck loses most' in seen.text['parts']
    assert 'output score −50 %, size +50 %' in seen.text['suggestion']
    assert 'correlation with the loss of the metric is 0.50' in text
    for name in ('a', 'b', '@neck'):
        assert name in seen.text['table']


def test_nothing_but_scores():
    bare = {k: found()[k] for k in ('about', 'scores')}
    seen = harmless(sensitivity_page(bare, 'output', [row('a')], ''))
    assert 'There are none' in seen.text['parts']
    assert 'No layer loses anything' in seen.text['suggestion']
    assert 'were not measured' in seen.text['errors']
    assert '--check N' in seen.text['check']


def test_texts_that_mean_harm():
    rows = [row(HOSTILE), row(HOSTILE, True)]
    harmless(sensitivity_page(found(HOSTILE), 'output', rows, HOSTILE))


def test_many_layers_are_shown_in_part():
    rows = [row(f'layer{i}') for i in range(60)]
    seen = harmless(sensitivity_page(found(), 'output', rows, ''))
    assert 'The worst 40 of 60' in seen.text['layers']
    assert 'layer59' in seen.text['table']


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({}, 'Keep this layer float: output score −50 %, size +50 %'),
        (dict(before=0.0), 'Keep this layer float: output score 0 to 1, size'),
    ],
)
def test_what_came_of_it_in_words(change, words):
    assert suggested_words(one() | change, 'output').startswith(words)


def test_what_was_not_tried_in_words():
    bare = {k: v for k, v in one().items() if k != 'after'}
    words = suggested_words(bare, 'output')
    assert words == 'Keep this layer float: this was not tried to the end'
    failed = suggested_words(bare | dict(failed='conv: NaN'), 'output')
    assert failed.endswith('float: this was tried, and failed (conv: NaN)')


def test_no_rank_in_words():
    given = dict(pairs={'a': [1, 0], 'b': [2, 0]}, spearman=None)
    assert check_words(given).startswith('2 layers lose the same AP')
