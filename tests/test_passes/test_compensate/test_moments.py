# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Paired moments against loops."""

import pytest
import torch
from torch import nn

from mmdet_ptq.calibration import weight_matrix
from mmdet_ptq.passes.compensate.moments import (
    PairedMoments,
    Product,
    blocks_of,
)

LAYERS = dict(
    linear=lambda: nn.Linear(6, 4),
    conv=lambda: nn.Conv2d(3, 4, (1, 2), bias=False),
    grouped=lambda: nn.Conv2d(12, 4, 1, groups=2),
)


def filled(layer, most=100, seed=0):
    """Moments, and the rows that went in: of each half a list of pairs."""
    generator = torch.Generator('cpu').manual_seed(seed)
    groups, _, columns = weight_matrix(layer, layer.weight).shape
    moments, given = PairedMoments(Product(layer, most)), ([], [])
    for i, size in enumerate((5, 0, 7, 3)):
        exact = torch.randn(groups, size, columns, generator=generator) + 3
        noise = torch.randn(groups, size, columns, generator=generator)
        wanted = moments.product(exact)
        moments.add(exact + 0.1 * noise, wanted, i % 2)
        given[i % 2].append((exact + 0.1 * noise, exact))
    return moments, given


@pytest.mark.parametrize('half', [None, 0, 1])
@pytest.mark.parametrize('centred', [False, True])
@pytest.mark.parametrize('kind', LAYERS)
def test_against_loops(kind, centred, half):
    layer = LAYERS[kind]()
    moments, given = filled(layer)
    pairs = [p for h in (0, 1) if half in (None, h) for p in given[h]]
    rows = torch.cat([p[0] for p in pairs], 1).double()
    exact = torch.cat([p[1] for p in pairs], 1).double()
    weight = weight_matrix(layer, layer.weight.detach()).double()
    found = moments.system(centred, half)
    assert moments.counts == [12, 3] and moments.count == 15
    for g in range(len(weight)):
        x, m = rows[g], (exact[g] - rows[g]) @ weight[g].T
        power = (exact[g] @ weight[g].T).square().mean()
        torch.testing.assert_close(found.mean[g], x.mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            found.missing[g], m.mean(0), rtol=1e-4, atol=1e-6
        )
        if centred:
            x, m = x - x.mean(0), m - m.mean(0)
        second = sum(torch.outer(r, r) for r in x) / len(x)
        first = sum(
            torch.outer(a, r) for a, r in zip(m, x, strict=True)
        ) / len(x)
        torch.testing.assert_close(
            found.second[g], second, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(found.first[g], first, rtol=1e-4, atol=1e-5)
        if len(weight) == 1:
            assert found.power == pytest.approx(float(power), rel=1e-5)


def test_blocks_are_groups():
    layer = nn.Conv2d(12, 4, 1, groups=2)
    whole, _ = filled(layer)
    parts, _ = filled(layer, most=4)
    assert whole.product.blocks == 1 and parts.product.blocks == 2
    ours, theirs = parts.system(True), whole.system(True)
    for g in range(2):
        for b in range(2):
            at = slice(3 * b, 3 * b + 3)
            second = theirs.second[g, at, at]
            torch.testing.assert_close(ours.second[2 * g + b], second)
            mean = theirs.mean[g, at]
            torch.testing.assert_close(ours.mean[2 * g + b], mean)
    # of all outputs, whatever the blocks
    assert ours.power == pytest.approx(theirs.power, rel=1e-5)
    # what blocks miss adds up to what the layer does
    missing = ours.missing.unflatten(0, (2, 2)).sum(1)
    torch.testing.assert_close(missing, theirs.missing, rtol=1e-4, atol=1e-6)
    matrix, product = torch.randn(2, 5, 6), parts.product
    assert torch.equal(product.joined(product.parted(matrix)), matrix)
    assert torch.equal(product.parted(matrix)[3], matrix[1, :, 3:])


def test_nothing_is_missing_where_there_is_no_like():
    moments = PairedMoments(Product(LAYERS['linear'](), 100))
    rows = torch.randn(1, 9, 6, generator=torch.Generator('cpu'))
    moments.add(rows, None, 0)
    found = moments.system(False)
    assert not found.first.any() and not found.missing.any()
    assert found.power > 0 and found.second.any()


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('where', ['rows', 'outputs'])
def test_what_is_not_finite_is_noticed(bad, where):
    moments = PairedMoments(Product(LAYERS['linear'](), 100))
    rows, outputs = torch.ones(1, 9, 6), torch.ones(1, 9, 4)
    moments.add(rows, outputs, 0)
    assert moments.finite
    dict(rows=rows, outputs=outputs)[where][0, 3, 2] = bad
    moments.add(rows, outputs, 1)
    moments.add(torch.ones(1, 9, 6), None, 1)
    assert not moments.finite


@pytest.mark.parametrize(
    'columns, most, blocks',
    [(12, 12, 1), (12, 11, 2), (12, 5, 3), (12, 1, 12), (7, 6, 7), (1, 1, 1)],
)
def test_blocks_are_equal(columns, most, blocks):
    assert blocks_of(columns, most) == blocks
    assert columns % blocks == 0 and columns // blocks <= most
