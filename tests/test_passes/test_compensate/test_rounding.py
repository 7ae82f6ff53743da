# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding against naive references."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet_ptq.passes.compensate.rounding import (
    compensate,
    damped,
    descend,
    inverse_root,
    solved,
    squared_error,
)

LEVELS = torch.tensor([-2.0, -1.0, 0.0, 1.5])


def nearest(_, column):
    """Of a grid whose steps are not equal."""
    away = (column[..., None] - LEVELS.to(column)).abs()
    return LEVELS.to(column)[away.argmin(-1)]


def problem(seed, columns, groups=2, rows=3):
    generator = torch.Generator('cpu').manual_seed(seed)
    shape = dict(generator=generator, dtype=torch.float64, device='cpu')
    x = torch.randn(groups, 4 * columns, columns, **shape)
    # channels that depend on each other, as those of a feature map do
    x = x + 2 * torch.randn(groups, 4 * columns, 1, **shape)
    aim = torch.randn(groups, rows, columns, **shape)
    return aim, x.mT @ x / x.shape[1]


def naive(aim, moments):
    """Optimal Brain Quantization of one row, its inverse shrunk by hand."""
    left, inverse = aim.clone(), torch.linalg.inv(moments)
    found = torch.empty_like(aim)
    for j in range(len(aim)):
        found[j] = nearest(j, left[j])
        error = left[j] - found[j]
        left = left - error / inverse[j, j] * inverse[j]
        # without column j (Frantar and Alistarh, 2022, lemma 1)
        inverse = (
            inverse - torch.outer(inverse[:, j], inverse[j]) / (inverse[j, j])
        )
        inverse[j] = inverse[:, j] = 0.0
    return found


@pytest.mark.parametrize('columns', [1, 2, 7, 63, 64, 65, 150])
def test_against_optimal_brain_quantization(columns):
    aim, moments = problem(columns, columns)
    found = compensate(aim, inverse_root(moments), nearest)
    for g, r in product(range(2), range(3)):
        assert torch.equal(found[g, r], naive(aim[g, r], moments[g]))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), columns=st.integers(1, 4))
def test_between_brute_force_and_the_nearest(seed, columns):
    aim, moments = problem(seed, columns, 1, 1)
    every = torch.tensor(
        list(product(LEVELS.tolist(), repeat=columns)), dtype=torch.float64
    )
    errors = squared_error(every[None], aim.expand(1, len(every), -1), moments)
    found = compensate(aim, inverse_root(moments), nearest)
    better = descend(found, aim, moments, nearest, 3)
    ours, lower = (squared_error(v, aim, moments) for v in (found, better))
    assert errors.min() <= lower * (1 + 1e-9) + 1e-12
    assert lower <= ours * (1 + 1e-9) + 1e-12
    if columns == 1:
        assert ours.item() == pytest.approx(errors.min().item(), abs=1e-12)


def test_better_than_the_nearest_by_much():
    ours = plain = 0.0
    for seed in range(20):
        aim, moments = problem(seed, 30)
        found = compensate(aim, inverse_root(moments), nearest)
        ours += float(squared_error(found, aim, moments).sum())
        plain += float(squared_error(nearest(0, aim), aim, moments).sum())
    assert ours < 0.7 * plain


def test_descent_ends_where_no_column_can_do_better():
    aim, moments = problem(1, 12)
    found = descend(nearest(0, aim), aim, moments, nearest, 50)
    least = squared_error(found, aim, moments)
    for j, level in product(range(12), LEVELS.tolist()):
        other = found.clone()
        other[..., j] = level
        worse = squared_error(other, aim, moments)
        assert (worse >= least - 1e-9).all()


@pytest.mark.parametrize('columns', [63, 64, 65, 150])
def test_descent_in_blocks_is_that_column_by_column(columns):
    aim, moments = problem(columns, columns)
    start = nearest(0, aim)
    slow = start.clone()
    for _, j in product(range(2), range(columns)):
        slope = ((aim - slow) @ moments)[..., j]
        steep = moments[:, None, j, j]
        slow[..., j] = nearest(j, slow[..., j] + slope / steep)
    assert not torch.equal(slow, start)
    assert torch.equal(descend(start, aim, moments, nearest, 2), slow)


def test_error_by_hand():
    off = torch.tensor([[[1.0, -2.0]]])
    moments = torch.tensor([[[3.0, 1.0], [1.0, 5.0]]])
    # 3 - 2 * 2 * 1 + 4 * 5
    assert squared_error(torch.zeros(1, 1, 2), off, moments).item() == 19


@pytest.mark.parametrize('columns', [1, 5, 40])
def test_root_of_the_inverse(columns):
    _, moments = problem(columns, columns)
    root = inverse_root(moments)
    assert torch.equal(root, root.triu())
    torch.testing.assert_close(root.mT @ root, torch.linalg.inv(moments))


def test_no_root_of_what_has_no_inverse():
    moments = torch.zeros(2, 3, 3)
    moments[0] = torch.eye(3)
    assert inverse_root(moments) is None
    assert solved(moments, torch.ones(2, 1, 3)) is None
    assert inverse_root(moments[:1]) is not None


@pytest.mark.parametrize('columns', [1, 5, 40])
def test_solved(columns):
    first, moments = problem(columns, columns)
    expected = first @ torch.linalg.inv(moments)
    torch.testing.assert_close(solved(moments, first), expected)


def test_damping_by_hand():
    moments = torch.tensor(
        [[[1.0, 2.0], [2.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]
    )
    found = damped(moments, torch.tensor([0.5, 0.25]), 0.1)
    expected = torch.tensor(
        [[[1.7, 2.0], [2.0, 3.7]], [[0.25, 0.0], [0.0, 0.25]]]
    )
    torch.testing.assert_close(found, expected)
    assert moments[1, 0, 0] == 0
