# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Codes of values and the bounds between them."""

import math
from itertools import pairwise

import pytest
import torch
from seeded import seeded
from subset_kit import fitted, make, samples

from mmdet_ptq.quantizers import SubsetQuantizer
from mmdet_ptq.quantizers.subset import search as subset_search


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_lower_codes_bracket(bits):
    w = samples((5, 40), 'peaked', bits)
    q = fitted(w, bits)
    codes = q.lower_codes(w)
    low, high = q.values(codes), q.values(codes + 1)
    assert codes.dtype == torch.int32 and bool((low < high).all())
    top = q.scale[:, None]
    assert bool(((low <= w) | (w < -top)).all())
    assert bool(((w <= high) | (w > top)).all())
    # the nearest value is one of the two
    assert bool(((q(w) == low) | (q(w) == high)).all())
    assert torch.equal(q.lower_codes(w.double()), codes)


def test_codes_rise_with_the_values():
    for magnitudes in ([0.0, 0.5, 0.75, 1.0], [0.1, 0.5, 0.75, 1.0]):
        q = make(magnitudes, [3.0])
        codes = q.encode(torch.linspace(-4, 4, 1001))
        assert bool((codes.diff() >= 0).all())
        want = 7 if magnitudes[0] == 0 else 8
        assert codes.unique().tolist() == list(range(want))
        values = q.values(codes.unique()).tolist()
        assert all(a < b for a, b in pairwise(values))


def nearest_by_division(x, scale, magnitudes):
    """Codes of the nearest values, the lower of two magnitudes as near."""
    ratio = x / scale
    middle = (magnitudes[1:] + magnitudes[:-1]) / 2
    near = torch.bucketize(ratio.abs(), middle)
    below = len(magnitudes) - 1
    above = below + int(magnitudes[0] != 0)
    return torch.where(ratio < 0, below - near, above + near)


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_bounds_are_where_the_quotient_changes_sides(bits):
    generator = seeded(bits)
    subsets = subset_search.candidate_subsets(bits).float()
    at = torch.randint(len(subsets), (30,), generator=generator)
    for magnitudes in (subset_search.default_subset(bits), *subsets[at]):
        exponents = torch.randint(-99, 127, (8,), generator=generator)
        scale = torch.rand(8, generator=generator) + 1
        scale = scale * torch.exp2(exponents)
        q = SubsetQuantizer(bits)
        q.load_state_dict(
            dict(
                magnitudes=magnitudes,
                scale=scale,
                initialized=torch.tensor(True),
            )
        )
        middle = (magnitudes[1:] + magnitudes[:-1]) / 2
        x = [scale[:, None] * middle]
        for _ in range(6):  # and its neighbours on both sides
            x.insert(0, torch.nextafter(x[0], torch.tensor(0.0)))
            x.append(torch.nextafter(x[-1], torch.tensor(math.inf)))
        x = torch.cat([*x, scale[:, None] * magnitudes], 1)
        x = torch.cat([x, -x], 1)
        want = nearest_by_division(x, scale[:, None], magnitudes)
        assert torch.equal(q.encode(x).long(), want)
