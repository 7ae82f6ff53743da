# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is gathered, and why something is not."""

import json

from report_kit import boxes, row, scene

from mmdet_ptq.report import gather
from mmdet_ptq.report.gather import gathered


def test_all_of_it_is_plain():
    found, problems = gathered(scene(), scene(3.0), ('a', 'b'), {}, {})
    assert problems == [] and found['why'] == {}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(found[k] for k in ('accuracy', 'changes', 'examples'))


def test_without_a_float_test():
    why = dict(float='not tested')
    found, problems = gathered(None, scene(), (), None, why)
    assert problems == [] and found['changes'] is None
    assert found['why']['changes'] == 'not tested'
    assert found['accuracy'] and found['examples']


def test_without_objects():
    rows = [row(0, boxes((0, 0, 9, 9, 0, 0.9)))]
    found, _ = gathered(rows, rows, (), None, {})
    assert 'loads no objects' in found['why']['accuracy']
    assert found['changes']['fates']['kept'] == 1
    found, _ = gathered(None, rows, (), None, {})
    assert set(found['why']) == {'accuracy', 'changes', 'examples', 'layers'}


def test_without_predictions():
    why = dict(quantized='kept none')
    found, _ = gathered(scene(), None, (), None, why)
    parts = ('accuracy', 'changes', 'examples')
    assert {found['why'][key] for key in parts} == {'kept none'}


def test_a_part_that_fails_costs_no_other(monkeypatch):
    def changes(*_):
        raise RuntimeError('broken')

    monkeypatch.setattr(gather, 'changes', changes)
    found, problems = gathered(scene(), scene(), (), None, {})
    assert 'RuntimeError: broken' in found['why']['changes']
    assert problems == [f'changes: {found["why"]["changes"]}']
    assert found['accuracy'] and found['changes'] is None
