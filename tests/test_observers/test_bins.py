# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bins of powers of two."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet_ptq.observers.bins import (
    MIN_EXPONENT,
    coarsen,
    exponents,
    power_of_two,
)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_powers_of_two_are_exact():
    e = torch.arange(-200, 201)
    assert power_of_two(e).tolist() == [2.0**i for i in e.tolist()]


@settings(deadline=None, derandomize=True)
@given(low=floats, high=floats, half=st.sampled_from([8, 512]))
def test_exponent_is_the_smallest_that_fits(low, high, half):
    low, high = sorted((low, high))
    e = exponents(torch.tensor([low]), torch.tensor([high]), half).item()

    def fits(e):
        return (
            math.floor(low / 2.0**e) >= -half
            and math.floor(high / 2.0**e) < half
        )

    assert fits(e)
    assert e == MIN_EXPONENT or not fits(e - 1)


def test_coarsen_by_hand():
    counts = torch.arange(1, 9)[None].repeat(4, 1)  # bins -4 .. 3
    got = coarsen(counts, torch.tensor([0, 1, 2, 70]))
    assert got.tolist() == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [0, 0, 3, 7, 11, 15, 0, 0],
        [0, 0, 0, 10, 26, 0, 0, 0],
        [0, 0, 0, 10, 26, 0, 0, 0],
    ]
