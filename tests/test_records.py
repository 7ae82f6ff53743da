# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import json
from dataclasses import dataclass

import pytest

from mmdet_ptq.records import (
    AllocationRecord,
    BudgetRecord,
    RangeRecord,
    Record,
    UnitRecord,
    record_of,
)


@dataclass(frozen=True)
class WidthRecord(Record):
    """What a pass from outside the package might note."""

    bits: int


@dataclass(frozen=True)
class FinerRecord(WidthRecord):
    why: str


@pytest.mark.parametrize(
    'record',
    [
        RangeRecord('all', 2.4, 0.5),
        RangeRecord('neck', 2.0, 0.5, after=0.25),
        UnitRecord('neck', 1.0, None, False, 'NaN', [1.0, 0.5], ['AdaRound']),
        UnitRecord('neck', 1.0, 0.5, True, correction=[2.0, 1.0]),
        AllocationRecord('a', 'weight', ['a'], 0, 9, 3, [3, 4], [1.0, None]),
        BudgetRecord('all', 'bytes', 9, 8.5, 3, 8, 'dp', 'roi', 1.0, 2.0),
        WidthRecord('neck', 3),
        FinerRecord('neck', 3, 'why'),
    ],
)
def test_there_and_back_through_json(record):
    found = json.loads(json.dumps(record.to_dict()))
    assert found['type'] == type(record).__name__
    assert record_of(found) == record


def test_unknown_record():
    with pytest.raises(KeyError):
        record_of(dict(type='NoRecord', unit='neck'))
