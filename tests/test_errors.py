# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The message for a name that is not allowed."""

from mmdet_ptq import errors
from mmdet_ptq.errors import PTQError, unknown


def test_unknown_names_the_nearest_and_all():
    assert unknown('key', 'bit', ['rules', 'bits', 'bits']) == (
        "unknown key 'bit'. Did you mean 'bits'? Allowed: bits, rules."
    )
    assert unknown('key', 7, ['rules']) == 'unknown key 7. Allowed: rules.'
    assert unknown('key', 'x', []) == "unknown key 'x'. Allowed: none."


def test_one_family():
    kinds = [
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, Exception)
    ]
    assert len(kinds) > 4
    assert all(issubclass(kind, PTQError) for kind in kinds)
