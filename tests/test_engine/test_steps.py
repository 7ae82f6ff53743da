# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How many steps the passes of a ``quant_cfg`` learn."""

import pytest

from mmdet_ptq.engine.steps import learning_passes, with_iters


@pytest.mark.parametrize(
    ('recipe', 'kinds'),
    [
        ('uniform', []),
        ('gptq', []),
        ('gptq_recon', ['Reconstruct']),
        ('brecq', ['Reconstruct', 'Reconstruct']),
        ('reg_ptq', ['Reconstruct']),
    ],
)
def test_which_passes_learn(recipe, kinds):
    given = dict(recipe=recipe, bits='w4a4')
    assert learning_passes(given) == kinds
    assert with_iters(given, 5) == {kind: dict(iters=5) for kind in kinds}


def test_other_arguments_stay():
    args = dict(Reconstruct=dict(holdout=0.25), SetRanges=dict())
    given = dict(recipe='qdrop', bits='w4a4', pass_args=args)
    assert with_iters(given, 5) == dict(
        Reconstruct=dict(holdout=0.25, iters=5), SetRanges=dict()
    )
    assert args['Reconstruct'] == dict(holdout=0.25)
