# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Names of runs, and reasons."""

from report_kit import data_of, result_of

from mmdet_ptq.report.files import Run
from mmdet_ptq.report.sections.words import labels, missing


def test_names_differ():
    runs = [Run(n, result_of(recipe=r)) for n, r in ('ax', 'bx', 'cy')]
    assert labels(runs) == ['x w4a8 (a)', 'x w4a8 (b)', 'y w4a8']
    runs = [Run('out', result_of(recipe='x')) for _ in range(2)]
    assert labels(runs) == ['x w4a8 (out) (1)', 'x w4a8 (out) (2)']


def test_reasons_are_told():
    run = Run('a', result_of(), data_of(why=dict(changes='not tested')))
    assert missing(run, 'changes') == 'not tested.'
    assert missing(run, 'layers').startswith('Nothing was gathered')
    assert 'older version' in missing(Run('a', result_of()), 'layers')
