# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The best candidates, against loops in double precision."""

import pytest
import torch
from search_kit import every_row, product, quantized

from mmdet_ptq.passes.search_scales import search as module
from mmdet_ptq.passes.search_scales.objectives import Pearson, Squares
from mmdet_ptq.passes.search_scales.operands import Sampled
from mmdet_ptq.passes.search_scales.search import Grid, loss_now, search
from mmdet_ptq.passes.search_scales.terms import Terms
from mmdet_ptq.quantizers import UniformQuantizer

RANGES = Grid(progressive=False, count=20, fractions=(0.1, 1.1))


def searched(layer, tensor, data, grid=RANGES, objective=None):
    objective = objective or Squares()
    terms = Terms(layer, [data], objective)
    q = layer.weight_quantizer
    q = q if tensor == 'weight' else layer.act_quantizers[tensor]
    samples = terms.samples(tensor)[0]
    return search(q, terms.of(tensor), samples, objective, grid)


def shares(ends):
    """Candidate ranges as the pass makes them, one share after another."""
    for i in range(20):
        yield [end * (0.1 + i / 20) for end in ends]


@torch.no_grad()
def test_input_by_brute_force():
    layer, x = quantized('linear')
    rows = x.reshape(-1, 12)
    weight = layer.weight.double()
    rounded = layer.quantized_weight().double()
    exact = rows.double() @ weight.T
    losses = []
    ends = rows.min()[None], rows.max()[None]
    now = layer.act_quantizers['input'].range()
    for low, high in (*shares(ends), now):
        q = UniformQuantizer(3)
        q.set_range(low, high)
        loss = 0.0
        for row, aim in zip(q(rows).double(), exact, strict=True):
            for out, channel in zip(aim, rounded, strict=True):
                loss += float(row @ channel - out) ** 2
        losses.append(loss)
    before, after = searched(layer, 'input', every_row(layer, x))
    assert before == pytest.approx(losses[-1], rel=1e-4)
    assert after == pytest.approx(min(losses), rel=1e-4)
    assert after < before


@pytest.mark.parametrize('kind', ['linear', 'grouped', 'transposed'])
@torch.no_grad()
def test_weight_by_brute_force(kind):
    """Each output channel has the candidate that is best for it alone."""
    layer, x = quantized(kind)
    q = layer.weight_quantizer
    rows = q.granularity.rows(layer.weight)
    ends = rows.amin(1), rows.amax(1)
    layer.switch(False, False)
    exact = layer(x).double()
    layer.switch(True, True)
    axis = -1 if kind == 'linear' else 1
    losses = []
    for low, high in (*shares(ends), q.range()):
        one = UniformQuantizer(
            3, True, 'channel', axis=layer.weight_axis, role='weight'
        )
        one.set_range(low, high)
        layer.fix_weight(one(layer.weight))
        off = (layer(x).double() - exact).movedim(axis, 0).flatten(1)
        per_channel = off.square().sum(1)
        # a row of a transposed convolution serves a channel of each group
        losses.append(per_channel.view(-1, len(rows)).sum(0))
    layer.fix_weight(None)
    before, after = searched(layer, 'weight', every_row(layer, x))
    assert before == pytest.approx(float(losses[-1].sum()), rel=1e-4)
    best = torch.stack(losses).amin(0).sum()
    assert after == pytest.approx(float(best), rel=1e-4)
    off = layer(x).double() - exact
    assert float(off.square().sum()) == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize('port', ['a', 'b'])
@torch.no_grad()
def test_product_by_brute_force(port):
    layer, a, b = product()
    q = layer.act_quantizers[port]
    x = a if port == 'a' else b
    rows = q.granularity.rows(x)
    losses = []
    for low, high in (*shares((rows.amin(1), rows.amax(1))), q.range()):
        one = UniformQuantizer(3, granularity='channel', axis=1)
        one.set_range(low, high)
        if port == 'a':
            ours = one(a).double() @ layer.act_quantizers['b'](b).double()
        else:
            ours = layer.act_quantizers['a'](a).double() @ one(b).double()
        off = ours - a.double() @ b.double()
        losses.append(off.square().sum((0, 2, 3)))
    data = Sampled(0, torch.arange(3), (a, b))
    _, after = searched(layer, port, data)
    best = torch.stack(losses).amin(0).sum()
    assert after == pytest.approx(float(best), rel=1e-4)


@torch.no_grad()
def test_channels_of_one_output_in_turn():
    """Each is the best with those before it as they are now."""
    layer, x = quantized('linear', act='channel')
    data = every_row(layer, x)
    rows = x.reshape(-1, 12)
    q = layer.act_quantizers['input']
    low, high = (end.clone() for end in q.range())
    weight, rounded = layer.weight.double(), layer.quantized_weight().double()
    exact = rows.double() @ weight.T
    ends = rows.amin(0), rows.amax(0)
    tried = [*shares(ends), (low.clone(), high.clone())]
    for c in range(12):
        best = None
        for one in tried:
            low[c], high[c] = one[0][c], one[1][c]
            mine = UniformQuantizer(3, granularity='channel', axis=-1)
            mine.set_range(low, high)
            off = mine(rows).double() @ rounded.T - exact
            loss = float(off.square().sum())
            if best is None or loss < best[0]:
                best = loss, one
        low[c], high[c] = best[1][0][c], best[1][1][c]
    _, after = searched(layer, 'input', data)
    assert after == pytest.approx(best[0], rel=1e-4)


@pytest.mark.parametrize('block', [1, 1 << 20])
@torch.no_grad()
def test_progressive_is_better_than_shares(block, monkeypatch):
    """However many candidates are tried at once."""
    monkeypatch.setattr(module, 'BLOCK', block)
    found = []
    for grid in (RANGES, Grid()):
        layer, x = quantized('conv')
        data = every_row(layer, x)
        searched(layer, 'weight', data, grid)
        found.append(searched(layer, 'input', data, grid)[1])
    assert found[1] < found[0]


@torch.no_grad()
def test_worse_is_put_back():
    layer, x = quantized('linear')
    data = every_row(layer, x)
    q = layer.act_quantizers['input']
    searched(layer, 'input', data, Grid())
    scale, zero = q.scale.clone(), q.zero_point.clone()
    poor = Grid(progressive=False, count=16, fractions=(9.0, 20.0))
    before, after = searched(layer, 'input', data, poor)
    assert before == after
    assert torch.equal(q.scale, scale) and torch.equal(q.zero_point, zero)


@torch.no_grad()
def test_correlation_is_searched_too():
    layer, x = quantized('linear')
    data = every_row(layer, x)
    q = layer.act_quantizers['input']
    q.set_range(*(end / 4 for end in q.range()))
    objective = Pearson()
    before, after = searched(layer, 'input', data, objective=objective)
    assert after < 0.5 * before
    rows = x.reshape(-1, 12)
    ours = q(rows) @ layer.quantized_weight().T
    pair = torch.stack([ours.flatten(), (rows @ layer.weight.T).flatten()])
    assert after == pytest.approx(1 - float(pair.corrcoef()[0, 1]), rel=1e-3)
    terms = Terms(layer, [data], objective).of('input')
    assert loss_now(terms, objective) == pytest.approx(after)
