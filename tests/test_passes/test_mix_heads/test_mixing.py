# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The matrix that mixes channels, and what it does to weights."""

import numpy as np
import pytest
import torch
from torch import nn

from mmdet_ptq.passes.mix_heads.mixing import (
    even,
    gain,
    mixed_columns,
    mixed_rows,
    mixing,
)


def moments(heads, size, seed):
    """Correlated channels of varied strength."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(heads, 64, size, generator=generator).double()
    mix = torch.randn(heads, size, size, generator=generator).double()
    rows = rows * torch.logspace(-1, 1, size).double() @ mix
    return rows.mT @ rows / 64


def error(one, other, matrix):
    """``sum_i A_ii B_ii`` of mixed channels, number by number."""
    inverse = np.linalg.inv(matrix)
    total = 0.0
    for head in range(len(one)):
        t, back = matrix[head], inverse[head]
        a = t @ one[head] @ t.T
        b = back.T @ other[head] @ back
        total += sum(a[i, i] * b[i, i] for i in range(len(a)))
    return total


@pytest.mark.parametrize('size', [1, 2, 6, 8, 12, 15, 32])
def test_even_is_orthogonal(size):
    found = even(size)
    eye = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(found @ found.T, eye)
    if size & (size - 1) == 0:
        assert torch.allclose(found.abs(), torch.tensor(size**-0.5).double())
    assert found.square().max() <= 2.01 / size


@pytest.mark.parametrize('size', [2, 8, 16])
def test_the_error_is_the_least(size):
    one, other = moments(3, size, 0), moments(3, size, 1)
    mix = mixing(one, other)
    found = error(one.numpy(), other.numpy(), mix.numpy())
    # from the eigenvalues of the product, which need no roots of matrices
    least = sum(
        np.sqrt(np.linalg.eigvals(a @ b).real).sum() ** 2 / size
        for a, b in zip(one.numpy(), other.numpy(), strict=True)
    )
    assert least <= found <= 1.05 * least
    plain = error(one.numpy(), other.numpy(), np.stack([np.eye(size)] * 3))
    assert gain(one, other, mix) == pytest.approx(plain / found)
    random = np.random.default_rng(0)
    for _ in range(50):
        tried = mix.numpy() + 0.3 * random.standard_normal(mix.shape) * float(
            mix.abs().mean()
        )
        assert error(one.numpy(), other.numpy(), tried) > least


def test_both_sides_get_the_same_moments():
    one, other = moments(2, 8, 0), moments(2, 8, 1)
    mix = mixing(one, other)
    inverse = torch.linalg.inv(mix)
    a, b = mix @ one @ mix.mT, inverse.mT @ other @ inverse
    assert (a - b).norm() < 0.1 * a.norm()
    mean = a.diagonal(0, 1, 2).mean(1, keepdim=True)
    assert (a.diagonal(0, 1, 2) / mean - 1).abs().max() < 0.1


def test_dead_heads_stay():
    one, other = moments(3, 4, 0), moments(3, 4, 1)
    one[0], other[2] = 0, 0
    mix = mixing(one, other)
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.equal(mix[0], eye) and torch.equal(mix[2], eye)
    assert not torch.allclose(mix[1], eye)
    assert torch.isfinite(mix).all()
    assert gain(one[:1], other[:1], mix[:1]) == 1.0


def test_dependent_channels_do_not_blow_up():
    one = torch.ones(1, 4, 4, dtype=torch.float64)
    mix = mixing(one, moments(1, 4, 0))
    assert torch.isfinite(mix).all() and torch.linalg.cond(mix) < 1e3


@pytest.mark.parametrize('kind', ['linear', 'conv'])
def test_weights_against_loops(kind):
    torch.manual_seed(0)
    if kind == 'linear':
        first, second = nn.Linear(3, 6), nn.Linear(6, 2)
        x = torch.randn(5, 3)
    else:
        first, second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3, padding=1)
        x = torch.randn(2, 3, 6, 6)
    # two heads of two channels; channels 1 and 4 are of none
    places = torch.tensor([[0, 3], [5, 2]])
    mix = torch.randn(2, 2, 2).double()
    expected = second(first(x))
    middle = first(x)
    axis = -1 if kind == 'linear' else 1
    with torch.no_grad():
        mixed_rows(first, places, mix)
        mixed_columns(second, places, mix)
    found = first(x)
    for head in range(2):
        for i in range(2):
            row = sum(
                float(mix[head, i, j])
                * middle.select(axis, int(places[head, j]))
                for j in range(2)
            )
            torch.testing.assert_close(
                found.select(axis, int(places[head, i])), row
            )
    for i in (1, 4):
        torch.testing.assert_close(
            found.select(axis, i), middle.select(axis, i)
        )
    torch.testing.assert_close(second(found), expected, rtol=1e-4, atol=1e-5)
