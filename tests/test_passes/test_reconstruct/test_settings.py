# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Arguments that are refused before any forward."""

import pytest
from reconstruct_model import LEARN, reconstruct

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.passes.reconstruct import Reconstruct

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (dict(unit='stage'), 'block'),
        (dict(iters=-1), 'iters'),
        (dict(batch_size=0), 'batch_size'),
        (dict(drop_prob=1.5), 'drop_prob'),
        (dict(holdout=1.0), 'holdout'),
        (dict(global_every=0), 'global_every'),
        (
            dict(losses=[dict(type='DetectionLoss')], global_every=2),
            'images without a loss',
        ),
        (dict(learn=[]), 'learn'),
        (dict(autocast='bfloat'), 'bfloat16'),
        (dict(autocast='bfloat16'), "a loss on the detector's outputs"),
        (dict(learn=[dict(type='AdaRond')]), 'AdaRound'),
        (
            dict(learn=[dict(type='AdaRound'), dict(type='LearnedWeights')]),
            'two learners',
        ),
        (dict(losses=[dict(type='L2Loss', p=0)]), 'p must'),
        (dict(losses=[dict(type='FisherLoss')] * 2), 'two that take weights'),
        (
            dict(losses=[dict(type='FisherLoss', of=dict(type='Detect'))]),
            'Detect',
        ),
    ],
)
def test_bad_arguments(args, match):
    with pytest.raises((QuantConfigError, ValueError), match=match):
        reconstruct(**args)


def test_a_pass_is_built_from_a_config():
    built = Reconstruct(learn=LEARN)
    assert built.losses == [dict(type='L2Loss')]


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (dict(order='random', input_distribution='float'), 'sequential'),
        (dict(order='parallel'), "input_distribution='float'"),
        (
            dict(
                order='parallel',
                input_distribution='float',
                losses=[dict(type='L2Loss'), dict(type='DetectionLoss')],
            ),
            "units' outputs",
        ),
        (
            dict(
                order='parallel',
                input_distribution='float',
                losses=[dict(type='FisherLoss')],
            ),
            'no gradient',
        ),
    ],
)
def test_orders_that_do_not_work(args, match):
    with pytest.raises((QuantConfigError, ValueError), match=match):
        reconstruct(**args)
