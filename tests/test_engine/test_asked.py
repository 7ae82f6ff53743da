# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Settings that a user asks of a quantized checkpoint."""

import pytest

from mmdet_ptq.engine.asked import check_asked
from mmdet_ptq.errors import CheckpointError

MADE = dict(
    bits='w8a8',
    rules=[dict(match='*')],
    passes=[dict(type='Observe')],
    calibration=dict(num_samples=32, source='train'),
)


@pytest.mark.parametrize(
    'asked', [{}, MADE, dict(bits='w8a8'), dict(calibration={})], ids=str
)
def test_what_it_was_made_with(asked):
    check_asked(asked, MADE, 'q.pth')


@pytest.mark.parametrize(
    ('asked', 'says'),
    [
        (dict(bits='w4a4'), "bits is 'w8a8', not 'w4a4'; give the float"),
        (dict(rules=[], passes=[]), ': rules and passes of another recipe;'),
        (
            dict(calibration=dict(num_samples=8, source='train')),
            ': num_samples is 32, not 8;',
        ),
        (
            dict(bits='w4a4', calibration=dict(source='test')),
            ": bits is 'w8a8', not 'w4a4', source is 'train', not 'test';",
        ),
    ],
    ids=str,
)
def test_something_else(asked, says):
    with pytest.raises(CheckpointError) as told:
        check_asked(asked, MADE, 'q.pth')
    assert says in str(told.value) and 'q.pth' in str(told.value)


def test_a_part_that_the_checkpoint_does_not_have():
    asked = dict(calibration=dict(num_samples=8))
    with pytest.raises(CheckpointError, match=r'calibration is None, not \{'):
        check_asked(asked, {}, 'q.pth')
