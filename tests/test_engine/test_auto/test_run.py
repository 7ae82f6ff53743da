# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How a goal is looked for, as far as it can be told without a detector."""

import pytest

from mmdet_ptq.engine.auto import AutoOptions, Goal
from mmdet_ptq.engine.auto.run import own_settings
from mmdet_ptq.errors import QuantConfigError

GOAL = Goal('max_drop', 0.005)


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (dict(rank_num=0), '--rank-num must be a whole number from 1'),
        (dict(verify_num=0), '--verify-num must be a whole number from 1'),
        (dict(iters=0), '--iters must be a whole number from 1'),
        (dict(recipes=[]), '--recipes: give at least one recipe'),
        (dict(recipes=['gptk']), "unknown recipe 'gptk'. Did you mean 'gptq'"),
    ],
)
def test_what_cannot_be(given, words):
    with pytest.raises(QuantConfigError, match=words):
        AutoOptions(GOAL, **given)


def test_a_config_that_chooses_by_itself():
    own = dict(rules=[dict(match='*', act=None)], calibration=dict(seed=1))
    assert own_settings(own) == own
    for key in ('recipe', 'bits', 'passes', 'pass_args'):
        with pytest.raises(QuantConfigError, match=f"quant_cfg has '{key}'"):
            own_settings({**own, key: 'x'})
