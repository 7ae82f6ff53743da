# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What grids for single channels would bring."""

import pytest
import torch
from torch import nn

from mmdet_ptq.layers import convert
from mmdet_ptq.observers import search_weight_range
from mmdet_ptq.passes.scale_inputs.grids import (
    channel_ranges,
    output_error,
)
from mmdet_ptq.quantizers import UniformQuantizer


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
