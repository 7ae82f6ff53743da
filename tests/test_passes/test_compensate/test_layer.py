# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding of one layer."""

import pytest
import torch
from compensate_kit import GRIDS, LAYERS, data, gathered, twin

from mmdet_ptq.passes.compensate.layer import confirmed_share, round_layer
from mmdet_ptq.quantizers import (
    PlacesValues,
    Rescales,
)


def error(outputs, wanted):
    pairs = zip(outputs, wanted, strict=True)
    return sum(float((a - b).square().sum()) for a, b in pairs)


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('kind', LAYERS)
@torch.no_grad()
def test_the_output_is_nearer(kind, grid):
    layer = twin(kind, grid)
    exact, noisy = data(layer)
    layer.switch(weight=False, act=True)
    wanted = [layer(x) for x in noisy]
    layer.switch(weight=True, act=True)
    plain = error([layer(x) for x in noisy], wanted)
    found = round_layer(layer, gathered(layer, exact, noisy), 0.01, False, 1)
    ours = [layer(x) for x in noisy]
    assert found.after <= found.before and found.share == 0
    # few subsets leave nothing to choose, and errors of means add up to 0,
    # which is what all channels of these inputs have in common
    nothing = grid == 'codebook' or (kind, grid) == ('depthwise', 'subset')
    assert found.after < found.before or nothing
    assert error(ours, wanted) < plain
    # every weight is on the grid
    q = layer.weight_quantizer
    assert torch.equal(q(layer.rounded), layer.rounded)
    if layer.bias is not None:
        # of all rows: a transposed convolution has several for a position
        off = sum(
            float((a - b).sum()) for a, b in zip(ours, wanted, strict=True)
        )
        assert abs(off) < 1e-2 * sum(t.numel() for t in wanted) ** 0.5


@pytest.mark.parametrize('kind', LAYERS)
@torch.no_grad()
def test_blocks_of_columns(kind):
    layer = twin(kind)
    exact, noisy = data(layer)
    moments = gathered(layer, exact, noisy, 4)
    found = round_layer(layer, moments, 0.01, True, 1)
    assert found.after <= found.before
    q = layer.weight_quantizer
    assert torch.equal(q(layer.rounded), layer.rounded)
    assert layer.rounded.shape == layer.weight.shape


@torch.no_grad()
def test_towards_the_float_output():
    layer = twin('linear')
    exact, noisy = data(layer, 16, 0.0)
    # an error that weights can make up for: a channel that was lost
    for x in noisy:
        x[..., 0] = 0.5 * x[..., 1]
    layer.switch(weight=False, act=True)
    wanted = [layer(x) for x in exact]
    layer.switch(weight=True, act=True)
    errors = {}
    for towards in (False, True):
        moments = gathered(layer, exact, noisy)
        found = round_layer(layer, moments, 1e-3, towards, 1)
        errors[towards] = error([layer(x) for x in noisy], wanted)
    assert found.share > 0.5
    assert errors[True] < errors[False]


@torch.no_grad()
def test_the_bias_takes_what_is_missing_in_the_mean():
    layer = twin('linear')
    exact, noisy = data(layer, 8, 0.0)
    noisy = [x - 2.0 for x in noisy]
    layer.switch(weight=False, act=True)
    wanted = torch.cat([layer(x) for x in exact]).flatten(0, 1)
    layer.switch(weight=True, act=True)
    round_layer(layer, gathered(layer, exact, noisy), 0.01, True, 1)
    ours = torch.cat([layer(x) for x in noisy]).flatten(0, 1)
    torch.testing.assert_close(ours.mean(0), wanted.mean(0))


@pytest.mark.parametrize('seed', range(20))
@torch.no_grad()
def test_no_output_channel_is_worse_than_with_the_nearest(seed):
    layer = twin('linear')
    torch.manual_seed(seed)
    layer.weight.normal_()
    layer.bias = None
    layer.attach(weight=GRIDS['channel'](layer))
    exact, _ = data(layer, 2)
    moments = gathered(layer, exact, exact)
    round_layer(layer, moments, 0.0, False, 0)
    second = moments.system(False).second[0]
    weight = layer.weight.double()
    errors = []
    for found in (layer.rounded, layer.weight_quantizer(layer.weight)):
        off = found.double() - weight
        errors.append(((off @ second) * off).sum(1))
    assert (errors[0] <= errors[1] * (1 + 1e-3) + 1e-9).all()


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('kind', LAYERS)
@torch.no_grad()
def test_refitted_steps_are_nearer_still(kind, grid):
    found = {}
    for refits in (0, 3):
        layer = twin(kind, grid)
        exact, noisy = data(layer)
        moments = gathered(layer, exact, noisy)
        found[refits] = round_layer(layer, moments, 0.01, True, 1, refits)
        q = layer.weight_quantizer
        assert torch.equal(q(layer.rounded), layer.rounded)
    if isinstance(q, PlacesValues | Rescales):
        assert found[3].after < found[0].after
    else:
        assert found[3] == found[0]


@torch.no_grad()
def test_what_is_won_is_that_of_the_output():
    """Against the nearest values of the weight as it is."""
    layer = twin('linear')
    exact, _ = data(layer, 100)
    # four fifths of the signal: what the weight can make up for
    noisy = [0.8 * x for x in exact]
    layer.switch(weight=False, act=True)
    wanted = torch.cat([layer(x) for x in exact]).flatten(0, 1)
    layer.switch(weight=True, act=True)
    plain = torch.cat([layer(x) for x in noisy]).flatten(0, 1)
    found = round_layer(layer, gathered(layer, exact, noisy), 0.0, True, 1)
    ours = torch.cat([layer(x) for x in noisy]).flatten(0, 1)
    # the share is a little below 1, as halves of the images differ
    assert found.share > 0.99
    # the mean is that of the bias
    errors = [(y - wanted).var(0, correction=0).mean() for y in (plain, ours)]
    power = (wanted - layer.bias).square().mean()
    won = (errors[0] - errors[1]) / power
    assert found.before - found.after == pytest.approx(float(won), rel=0.02)
    assert won > 0


@torch.no_grad()
def test_chance_is_not_believed():
    """What two images say that are told apart by noise alone."""
    layer = twin('linear')
    noisy, exact = data(layer, 2, 1.0)
    share = confirmed_share(gathered(layer, exact, noisy), True, 0.01)
    many, _ = data(layer, 200)
    mixed = [0.5 * x for x in many]
    sure = confirmed_share(gathered(layer, many, mixed), True, 0.01)
    assert 0 <= share < 0.3 < 0.9 < sure <= 1
    one = gathered(layer, exact[:1], noisy[:1])
    assert confirmed_share(one, True, 0.01) == 0


@torch.no_grad()
def test_columns_that_say_nothing_are_counted():
    layer = twin('conv')
    exact, _ = data(layer, 2)
    for x in exact:
        x[:, 1] = 0.0
    # no bias: 0 alone says nothing; with padding others are 0 at the edge
    moments = gathered(layer, exact, exact)
    assert round_layer(layer, moments, 0.01, True, 1).dead == 9
    layer = twin('linear')
    exact, _ = data(layer, 2)
    for x in exact:
        x[..., 4:7] = 3.3
    moments = gathered(layer, exact, exact)
    assert round_layer(layer, moments, 0.01, True, 1).dead == 3
    rounded = layer.weight_quantizer(layer.weight)[:, 4:7]
    assert torch.equal(layer.rounded[:, 4:7], rounded)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda x: x.zero_(),
        lambda x: x[:, 1:].zero_(),
        lambda x: x.copy_(x[:, :1].expand_as(x).clone()),
        lambda x: x.fill_(1.0),
        lambda x: x.mul_(1e-20),
        lambda x: x.mul_(1e15),
    ],
    ids=['zero', 'dead', 'equal', 'constant', 'tiny', 'huge'],
)
@pytest.mark.parametrize('kind', ['conv', 'grouped'])
@torch.no_grad()
def test_the_factorization_never_fails(kind, spoil):
    layer = twin(kind)
    exact, _ = data(layer, 1)
    for x in exact:
        spoil(x)
    moments = gathered(layer, exact, exact)
    found = round_layer(layer, moments, 0.0, True, 2)
    assert found.after <= found.before
    assert torch.isfinite(layer.rounded).all()
    assert found.damping >= 0
    assert torch.equal(layer.weight_quantizer(layer.rounded), layer.rounded)
