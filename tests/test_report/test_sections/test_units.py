# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables of what passes noted."""

from dataclasses import asdict

import pytest
from report_kit import result_of, work_dir

from mmdet_ptq.records import (
    AllocationRecord,
    BudgetRecord,
    GroupsRecord,
    MixingRecord,
    NoiseRecord,
    ReparametrizationRecord,
    SearchRecord,
    reported,
)
from mmdet_ptq.report.files import Run, read_run
from mmdet_ptq.report.sections.units import TABLES, units


def test_bits_that_were_allocated(tmp_path):
    budget = BudgetRecord(
        'weights', 'mean bits', 4.0, 3.98, 3, 8, 'dp', 'output', 0.25, 0.5
    )
    some = [
        AllocationRecord('neck', 'weight', ['neck'], 1, 1234, 5, [5], [0.5]),
        AllocationRecord('head', 'input', ['head'], None, 8, 3, [3], [None]),
    ]
    result = result_of(
        budget=[asdict(budget)], allocation=[asdict(one) for one in some]
    )
    text = str(units([read_run(work_dir(tmp_path, result))]))
    assert 'Budgets of bits (1)' in text
    for cell in ('mean bits', '3.98', '0.25', '1,234', 'input'):
        assert f'>{cell}</td>' in text, cell
    # a run without them has no such table
    text = str(units([read_run(work_dir(tmp_path / 'b'))]))
    assert 'Budgets of bits' not in text


@pytest.mark.parametrize(
    ('key', 'record', 'cells'),
    [
        ('mixing', MixingRecord('u', 'qk', 1.25), ['qk', '1.25']),
        (
            'groups',
            GroupsRecord('u', 'a', ['u'], [4, 8], [0.5, 0.2], [0, 9], 8),
            ['a', '8'],
        ),
        (
            'search',
            SearchRecord('u', 'weight', ['u'], 3.5, 2.5),
            ['weight', '3.5', '2.5'],
        ),
        ('noise', NoiseRecord('u', ['u'], 0.5, 0.875), ['0.5', '0.875']),
        (
            'reparametrization',
            ReparametrizationRecord('u', 'ln', ['u'], 12.5, True),
            ['ln', 'yes', '12.5'],
        ),
    ],
)
def test_each_kind_of_record_has_a_table(key, record, cells):
    result = result_of(reconstruction=[], **{key: [asdict(record)]})
    text = str(units([Run('a', result)]))
    row = ''.join(
        f'<td{cls}>{cell}</td>'
        for cell in ('u', *cells)
        for cls in ([' class="n"'] if cell[0].isdigit() else [''])
    )
    assert row in text
    assert 'No pass' not in text


def test_no_kind_of_record_is_left_out():
    keys = [key for key, *_ in TABLES]
    assert sorted([*keys, 'reconstruction']) == sorted(reported([]))


def test_what_left_no_record_says_so():
    text = str(units([Run('a', result_of(reconstruction=[]))]))
    assert 'No pass left a record.' in text
