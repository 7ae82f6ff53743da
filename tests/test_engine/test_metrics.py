# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Metrics of whatever type."""

import json

import numpy as np
import pytest
import torch

from mmdet_ptq.engine.metrics import plain_metrics, row_of


def test_rows_of_the_table():
    assert row_of('mAP', 0.5, 0.25, 3) == ('mAP', '0.500', '0.250', '-0.250')
    assert row_of('mAP', 0.1, 0.3, 2) == ('mAP', '0.10', '0.30', '+0.20')
    assert row_of('mAP', None, 0.3, 1) == ('mAP', '-', '0.3', '-')
    assert row_of('mAP', 'text', 3, 1) == ('mAP', '-', '3.0', '-')


@pytest.mark.parametrize('after', ['text', None, True, [0.1], {}])
def test_what_is_no_number_has_no_row(after):
    assert row_of('x', 0.5, after, 3) is None


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_('a'), 'a'),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array(0.5), 0.5),
        (np.array([{1}], dtype=object), ['{1}']),
        (torch.tensor(0.5), 0.5),
        (torch.arange(2), [0, 1]),
        (torch.ones(1, requires_grad=True), [1.0]),
        ((0.5, [None, 'text']), [0.5, [None, 'text']]),
        ({1: dict(a=np.int8(1))}, {'1': dict(a=1)}),
        (True, True),
        (1 + 2j, '(1+2j)'),
        ({1}, '{1}'),
    ],
    ids=repr,
)
def test_plain(value, expected):
    found = plain_metrics(dict(x=value))
    assert found == dict(x=expected)
    assert type(found['x']) is type(expected)
    assert json.loads(json.dumps(found)) == found
