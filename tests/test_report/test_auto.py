# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page of a search: whole, and harmless."""

from report_kit import HOSTILE, harmless

from mmdet_ptq.report import auto_page
from mmdet_ptq.report.auto import front

WHOLE = dict(metric='coco/bbox_mAP', value=0.65, mb=8.0, bops=9e9)


def trial(title, metric, mb, bops, **given):
    return {
        **dict(
            title=title,
            recipe='uniform',
            mixed=False,
            metric=metric,
            drop=0.65 - metric,
            mb=mb,
            bops=bops,
            seconds=3.0,
            within='yes',
        ),
        **given,
    }


TRIALS = [
    trial('uniform w8a8', 0.65, 2.0, 4e9),
    trial('uniform w4a8', 0.64, 1.0, 2e9, within='chosen'),
    trial('uniform w4a4', 0.5, 1.0, 1e9, within='no', mixed=True),
]


def page(kind='max_drop', limit=0.02, trials=TRIALS, text='x'):
    goal = dict(kind=kind, limit=limit)
    return auto_page(text, goal, trials, {**WHOLE}, [text], text)


def test_chart_and_table():
    seen = harmless(page())
    dots = [a for t, a in seen.tags if t == 'circle']
    assert len(dots) == 3 and len({a['class'] for a in dots}) == 2
    # the metric that has to be kept is marked
    (mark,) = (a for t, a in seen.tags if a.get('class') == 'zero')
    heights = sorted(float(a['cy']) for a in dots)
    assert heights[0] < heights[1] < float(mark['y1']) < heights[2]
    assert 'uniform w4a8chosen' in seen.text['table']
    assert 'The level one is the goal, 0.63' in seen.text['chart']
    assert '8.00 MB' not in seen.text['chart']
    assert '9 G BOPs' in seen.text['chart']


def test_a_size_has_no_mark():
    seen = harmless(page('target_size', 1.5))
    assert not [a for _, a in seen.tags if a.get('class') == 'zero']
    assert '8 MB' in seen.text['chart']


def test_texts_that_mean_harm():
    bad = [trial(HOSTILE, 0.5, 1.0, 1e9, recipe=HOSTILE)]
    harmless(page(trials=bad, text=HOSTILE))


def test_what_nothing_beats():
    places = [(4, 0.65), (2, 0.64), (1, 0.5), (3, 0.6), (2, 0.62), (5, 0.65)]
    assert front(places) == [(1, 0.5), (2, 0.64), (4, 0.65)]
    assert front([]) == []
