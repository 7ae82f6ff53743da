# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What grids for single channels would bring."""

import numpy as np
import pytest
import torch
from torch import nn

from mmdet_ptq.layers import convert
from mmdet_ptq.observers import search_weight_range
from mmdet_ptq.passes.scale_inputs.grids import (
    ChannelRanges,
    channel_ranges,
    output_error,
    percentile_ranges,
)
from mmdet_ptq.quantizers import CodebookQuantizer, UniformQuantizer


def rows(count=4000, seed=0):
    """Four channels: wide, narrow, one that lies off 0, and a rare one."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=rng)
    x = x * torch.tensor([10.0, 0.1, 0.5, 1.0])
    x[:, 2] += 20
    rare = torch.rand(count, generator=rng) < 0.002
    x[:, 3] = x[:, 3] * rare
    return x


def test_ranges_of_channels():
    x = rows()
    found = channel_ranges([x], 8, 2.4, False)
    # all of them hold 0
    assert bool((found.low <= 0).all() and (found.high >= 0).all())
    widths = x.amax(0) - x.amin(0)
    torch.testing.assert_close(found.width[0], widths[0], rtol=0.3, atol=0)
    torch.testing.assert_close(found.width[1], widths[1], rtol=0.3, atol=0)
    # of the rare one little is known: between its own and the tensor's
    assert widths[3] < found.width[3] < x.max() - x.min()
    shifted = channel_ranges([x], 8, 2.4, True)
    assert 15 < shifted.low[2] < shifted.high[2] < 25
    assert shifted.width[2] < 6 < 20 < found.width[2]


def test_a_dead_channel_has_the_width_of_the_tensor():
    x = rows()
    x[:, 1] = 0
    found = channel_ranges([x], 4, 2.4, False)
    expected = x.max() - x.min()
    torch.testing.assert_close(found.width[1], expected)
    assert torch.isfinite(found.scaling(1.0, True).factors).all()


def test_strengths():
    x = rows()
    found = channel_ranges([x], 4, 2.4, True)
    none, half, full = (found.scaling(s, True) for s in (0.0, 0.5, 1.0))
    assert none.factors.tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(half.factors.square(), full.factors)
    y = full(x)
    # all channels begin at 0 and have about the same width
    low, high = y.quantile(0.01, 0), y.quantile(0.99, 0)
    assert bool((low[:3] > -1).all())
    assert float((high - low)[:3].max() / (high - low)[:3].min()) < 2


def layer_of(columns):
    model = nn.Sequential(nn.Conv2d(4, 6, 1))
    convert(model)
    torch.manual_seed(0)
    model[0].weight.data = torch.randn(6, 4, 1, 1) * torch.tensor(
        columns
    ).view(1, 4, 1, 1)
    q = UniformQuantizer(8, granularity='channel', axis=0, role='weight')
    model[0].attach(weight=q, acts=dict(input=UniformQuantizer(4)))
    return model[0]


@pytest.mark.parametrize('strength', [None, 0.5, 1.0])
@torch.no_grad()
def test_error_of_outputs_is_that_of_the_layer(strength):
    """Quantized by hand, on the rows held out."""
    layer, fit, held = layer_of([1.0, 100.0, 1.0, 1.0]), rows(), rows(seed=1)
    ranges = channel_ranges([fit], 4, 2.4, True)
    scaling = None if strength is None else ranges.scaling(strength, True)
    act = layer.act_quantizers['input']
    found = output_error([layer], act, [fit], [held], scaling, 2.0)
    x, w = held.double(), layer.weight.double()[..., 0, 0]
    shown = held if scaling is None else scaling(held)
    factors = 1.0 if scaling is None else scaling.factors.double()
    mine = UniformQuantizer(4)
    given = fit if scaling is None else scaling(fit)
    mine.set_range(*search_weight_range(given, mine, 2.0, 20))
    kernel = UniformQuantizer(8, granularity='channel', axis=0, role='weight')
    wide = (w * factors).float()
    kernel.set_range(*search_weight_range(wide, kernel, 2.0, 20))
    shift = 0.0 if scaling is None else scaling.shift.double()
    exact = (x / factors - shift) @ (w * factors).T
    ours = mine(shown).double() @ kernel(wide).double().T
    # errors of inputs and of weights hardly know of each other
    by_hand = float((ours - exact).square().sum(1).mean())
    assert found == pytest.approx(by_hand, rel=0.02)


@torch.no_grad()
def test_narrow_channels_with_large_weights_gain():
    layer, fit, held = layer_of([1.0, 100.0, 1.0, 1.0]), rows(), rows(seed=1)
    act = layer.act_quantizers['input']
    ranges = channel_ranges([fit], 4, 2.4, True)
    plain, scaled = (
        output_error([layer], act, [fit], [held], s, 2.4)
        for s in (None, ranges.scaling(1.0, True))
    )
    assert scaled < 0.2 * plain


@torch.no_grad()
def test_a_grid_that_fits_points_is_judged_as_it_will_be():
    """By the values that it would have, not by the steps of its range."""
    layer = layer_of([1.0, 1.0, 1.0, 1.0])
    fit, held = (rows(seed=seed).relu() ** 2 for seed in (0, 1))
    act = layer.act_quantizers['input']
    own = CodebookQuantizer(act.bits)
    uniform, placed = (
        output_error([layer], q, [fit], [held], None, 2.0) for q in (act, own)
    )
    assert placed < 0.7 * uniform
    assert own.table.numel() == 0


@torch.no_grad()
def test_few_rows_and_the_same_many_times():
    """Products of few rows, second moments of many: the mean is the same."""
    layer, fit = layer_of([1.0, 100.0, 1.0, 1.0]), rows()
    act = layer.act_quantizers['input']
    held = rows(2, seed=1)
    few, many = (
        output_error([layer], act, [fit], [x], None, 2.4)
        for x in (held, held.repeat(2000, 1))
    )
    assert few == pytest.approx(many, rel=1e-4)


@pytest.mark.parametrize('shifted', [False, True])
def test_percentiles_of_channels_against_numpy(shifted):
    """Each channel by itself, on a grid as RepQ-ViT has it."""
    x = rows()[:, :3].double()
    x[0, 0], x[:400, 1] = 1000, x[:400, 1] * 30
    shares = [0.9, 0.99, 1.0]
    found = percentile_ranges([x[:1500], x[1500:]], 4, shares, shifted)
    for c, values in enumerate(x.T.numpy()):
        best = (np.inf, 0, 0)
        for share in shares:
            low, high = np.quantile(values, [1 - share, share])
            if not shifted:
                low, high = min(low, 0), max(high, 0)
            step = (high - low) / 15
            zero = np.round(-low / step)
            codes = np.clip(np.round(values / step) + zero, 0, 15)
            error = np.square((codes - zero) * step - values).sum()
            best = min(best, (error, low, high))
        assert float(found.low[c]) == pytest.approx(best[1], rel=1e-4)
        assert float(found.high[c]) == pytest.approx(best[2], rel=1e-4)
    assert torch.equal(found.width, found.high - found.low)


def test_one_grid_is_that_of_each_channel():
    """``s_c (q - z_c)`` of the channels, from one grid of what is scaled."""
    low = torch.tensor([-1.0, -8.0, 2.0, -0.5])
    high = torch.tensor([2.0, 4.0, 2.5, 1.0])
    one = ChannelRanges(low, high, high - low).one_grid(4, True)
    scale = ((high - low) / 15).double()
    zero = (-low / scale).round()
    mean, middle = scale.mean(), zero.mean().round().clamp(0, 15)
    x = torch.rand(300, 4, dtype=torch.double) * (high - low) + low
    codes = (x / scale).round() + zero
    wanted = scale * (codes.clamp(0, 15) - zero)
    mine = (one(x) / mean).round() + middle
    grid = mean * (mine.clamp(0, 15) - middle)
    found = (grid + one.shift) * one.factors
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # symmetric grids have no zero points
    even = ChannelRanges(low, high, high - low).one_grid(4, False)
    assert even.shift is None
    wanted = torch.tensor([2.0, 8.0, 2.5, 1.0]).double()
    torch.testing.assert_close(even.factors, wanted / wanted.mean())


def test_dead_channels_have_a_grid():
    low, high = torch.tensor([0.0, 5.0, -1.0]), torch.tensor([0.0, 5.0, 1.0])
    for shifted in (False, True):
        one = ChannelRanges(low, high, high - low).one_grid(4, shifted)
        assert bool((one.factors > 0).all())
        x = torch.tensor([[0.0, 5.0, 1.0]]).double()
        assert one(x).isfinite().all()
    none = ChannelRanges(*torch.zeros(3, 4)).one_grid(4, True)
    assert torch.equal(none.factors, torch.ones(4).double())
