# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a measurement of sensitivity is asked for."""

import pytest

from mmdet_ptq.engine.sensitivity_options import SensitivityOptions
from mmdet_ptq.errors import QuantConfigError


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (dict(score='outputs'), "unknown --score 'outputs'. Did you mean 'o"),
        (dict(rank_num=0), '--rank-num must be a whole number from 1, got 0'),
        (dict(verify_num=0), '--verify-num must be a whole number from 1'),
        (dict(check=-1), '--check must be a whole number from 0'),
        (dict(check=1), '--check 1: one layer has no rank'),
        (dict(check=3, score='ap'), '--check compares a cheap score with AP'),
        (dict(keep=0), '--keep must be a whole number from 1'),
    ],
)
def test_what_cannot_be(given, words):
    with pytest.raises(QuantConfigError, match=words):
        SensitivityOptions(**given)


def test_objects_are_needed_for_ap_alone():
    assert SensitivityOptions().verified == 0
    assert SensitivityOptions(check=2, verify_num=7).verified == 7
    assert SensitivityOptions(score='ap').verified == 64
