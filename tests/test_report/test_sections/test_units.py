# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables of what passes noted."""

from dataclasses import asdict

from report_kit import result_of, work_dir

from mmdet_ptq.records import AllocationRecord, BudgetRecord
from mmdet_ptq.report.files import read_run
from mmdet_ptq.report.sections.units import units


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
    assert 'Budgets of bits, and distances from the float detector (1)' in text
    for cell in ('mean bits', '3.98', '0.25', '1,234', 'input'):
        assert f'>{cell}</td>' in text, cell
    # a run without them has no such table
    text = str(units([read_run(work_dir(tmp_path / 'b'))]))
    assert 'Budgets of bits' not in text
