# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What passes that look at the outputs refuse."""

import pytest
from task_loss_kit import quantize

from mmdet_ptq.errors import QuantConfigError

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


@pytest.mark.parametrize(
    ('kind', 'args', 'match'),
    [
        ('ChooseExponents', dict(exponents=[]), 'exponents'),
        ('ChooseExponents', dict(exponents=[0.0]), 'above 0'),
        ('ChooseExponents', dict(images=0), 'images'),
        ('ChooseExponents', dict(loss=dict(type='Detect')), 'DetectionLoss'),
        (
            'ChooseExponents',
            dict(observer=dict(type='MinMaxObserver')),
            'LpObserver',
        ),
        ('LAPQ', dict(exponents=[2.0, 3.0]), '3 or more'),
        ('LAPQ', dict(powell_iters=-1), 'powell_iters'),
        ('LAPQ', dict(width=1.0), 'width'),
    ],
)
def test_bad_arguments(kind, args, match):
    with pytest.raises((QuantConfigError, ValueError), match=match):
        quantize(kind, **args)
