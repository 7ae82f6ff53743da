# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rounding that is learned, by hand."""

import math

import pytest
import torch
from learner_kit import QUANTIZERS, layer_with

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.passes.reconstruct import AdaRound
from mmdet_ptq.passes.reconstruct.learners import rectified_sigmoid
from mmdet_ptq.quantizers import ChannelGroups, UniformQuantizer


@pytest.mark.parametrize('name', QUANTIZERS)
def test_adaround_starts_at_the_float_weight(name):
    torch.manual_seed(0)
    weight = torch.randn(6, 40)
    layer = layer_with(QUANTIZERS[name](), weight)
    quantizer = layer.weight_quantizer
    learner = AdaRound()
    layer.shift_bias(torch.ones(6))
    learner.start({'0': layer}, [], 200)
    soft = layer.quantized_weight().detach()
    lower = quantizer.lower_codes(weight)
    low, high = quantizer.values(lower), quantizer.values(lower + 1)
    inside = (weight > low) & (weight < high)
    assert inside.float().mean() > 0.8
    # both are values of the grid, whatever lies outside it
    for x in (weight, 10 * weight):
        codes = quantizer.lower_codes(x)
        for value in (quantizer.values(codes), quantizer.values(codes + 1)):
            assert torch.equal(quantizer(value), value)
    torch.testing.assert_close(
        soft[inside], weight[inside], rtol=1e-4, atol=1e-5
    )
    assert bool(((soft >= low - 1e-6) & (soft <= high + 1e-6)).all())
    # where nothing was learned, hardening is rounding to the nearer value
    learner.harden()
    assert layer.weight_source is None and layer.bias_shift is None
    nearer = torch.where(weight - low < high - weight, low, high)
    tie = (weight - low - (high - weight)).abs() < 1e-5
    assert torch.equal(layer.rounded[~tie], nearer.detach()[~tie])
    assert torch.equal(quantizer(layer.rounded), layer.rounded)


@pytest.mark.parametrize('name', QUANTIZERS)
def test_adaround_starts_near_what_was_found(name):
    """Some weights were rounded away from the nearest value, up to two."""
    torch.manual_seed(0)
    weight = torch.randn(6, 40)
    layer = layer_with(QUANTIZERS[name](), weight)
    quantizer = layer.weight_quantizer
    step = quantizer(weight).diff().abs()
    step = float(step[step > 0].min())
    found = quantizer(weight + 1.5 * step * torch.randn_like(weight)).detach()
    assert not torch.equal(found, quantizer(weight))
    layer.fix_weight(found)
    layer.shift_bias(torch.ones(6))
    learner = AdaRound()
    learner.start({'0': layer}, [], 200)
    soft = layer.quantized_weight().detach()
    lower = quantizer.lower_codes(torch.lerp(found, weight, 1e-3))
    gap = (quantizer.values(lower + 1) - quantizer.values(lower)).detach()
    # at most a quarter of the way, and to the side of the float weight
    way = (soft - found) / gap
    inside = weight.abs() < 2 * weight.std()
    assert float(way.abs().max()) <= 0.25 + 1e-4
    assert bool((way * (weight - found) >= -1e-6)[inside].all())
    # where nothing was learned it ends where it began
    learner.harden()
    assert torch.equal(layer.rounded, found)
    assert torch.equal(layer.bias_shift, torch.ones(6))


def test_where_learning_starts_by_hand():
    """A quarter of a step off what was found, or where the weight is."""
    weight = torch.tensor([[0.2, 0.9, 1.4, -0.6, 7.4]])
    layer = layer_with(UniformQuantizer(4, True, role='weight'), weight)
    layer.weight_quantizer.set_range(*torch.tensor([[-7.5], [7.5]]))
    layer.fix_weight(torch.tensor([[0.0, 2.0, 1.0, 0.0, 6.0]]))
    AdaRound().start({'0': layer}, [], 200)
    expected = torch.tensor([[0.2, 1.75, 1.25, -0.25, 6.25]])
    torch.testing.assert_close(layer.quantized_weight().detach(), expected)


def test_adaround_needs_soft_rounding():
    AdaRound().check_weight('fc', UniformQuantizer)
    with pytest.raises(QuantConfigError, match='fc: the rounding of a Channe'):
        AdaRound().check_weight('fc', ChannelGroups)


@pytest.mark.parametrize('name', QUANTIZERS)
def test_hard_values_are_the_two_neighbours(name):
    """Wherever V went: |W - W_q| is at most the step between them."""
    torch.manual_seed(0)
    weight = torch.randn(6, 40)
    layer = layer_with(QUANTIZERS[name](), weight)
    quantizer = layer.weight_quantizer
    lower = quantizer.lower_codes(weight)
    low, high = quantizer.values(lower), quantizer.values(lower + 1)
    learner = AdaRound()
    (group,) = learner.start({'0': layer}, [], 200)
    (soft,) = group['params']
    soft.data = torch.randn(soft.shape)
    up = soft.data >= 0
    learner.harden()
    assert torch.equal(layer.rounded, torch.where(up, high, low))
    inside = (weight > low) & (weight < high)
    assert inside[up].any() and inside[~up].any()
    off = (weight - layer.rounded).abs()[inside]
    assert bool((off <= (high - low)[inside]).all())


@pytest.mark.parametrize('name', QUANTIZERS)
def test_hard_values_cost_nothing(name):
    layer = layer_with(QUANTIZERS[name](), torch.randn(6, 40))
    learner = AdaRound()
    (group,) = learner.start({'0': layer}, [], 200)
    (soft,) = group['params']
    assert float(learner.penalty(0.5)) > 0
    soft.data = 9 * torch.randn(soft.shape).sign()
    assert float(learner.penalty(0.5)) == 0
    weight = layer.quantized_weight()
    learner.harden()
    torch.testing.assert_close(layer.rounded, weight)


def test_rectified_sigmoid_by_hand():
    v = torch.tensor([0.0, math.log(11), -math.log(11), 9.0, -9.0])
    torch.testing.assert_close(
        rectified_sigmoid(v), torch.tensor([0.5, 1.0, 0.0, 1.0, 0.0])
    )


def test_penalty_and_its_schedule():
    layer = layer_with(QUANTIZERS['uniform'](), torch.randn(2, 3))
    learner = AdaRound(reg=0.5)
    (group,) = learner.start({'0': layer}, [], 2000)
    assert group['lr'] == 6 / 2000
    (soft,) = group['params']
    assert learner.penalty(0.0) == learner.penalty(0.199) == 0.0
    found = [learner.beta_at(p) for p in (0.2, 0.6, 1.0)]
    assert found == pytest.approx([20, 11, 2])
    cosine = AdaRound(schedule='cosine')
    assert cosine.beta_at(0.4) == pytest.approx(
        2 + 9 * (1 + math.cos(math.pi / 4))
    )
    # h is 0 or 1 everywhere: nothing to pay
    soft.data = torch.tensor([[9.0, -9, 9], [9, -9, -9]])
    assert float(learner.penalty(0.5)) == 0
    # h = 1/2: one for each; h = 3/4: 1 - (1/2)^beta
    soft.data[0, 0] = 0
    assert float(learner.penalty(0.5)) == pytest.approx(0.5)
    quarter = math.log((0.85 / 1.2) / (1 - 0.85 / 1.2))
    soft.data[1, 1] = quarter
    expected = 0.5 * (1 + 1 - 0.5**2)
    assert float(learner.penalty(1.0)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ('iters', 'lr'), [(20000, 1e-3), (2000, 3e-3), (200, 0.03), (20, 0.05)]
)
def test_rate_of_rounding(iters, lr):
    layer = layer_with(QUANTIZERS['uniform'](), torch.randn(2, 3))
    (group,) = AdaRound().start({'0': layer}, [], iters)
    assert group['lr'] == pytest.approx(lr)


@pytest.mark.parametrize('name', QUANTIZERS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_layer_of_half_precision(name, dtype):
    torch.manual_seed(0)
    layer = layer_with(QUANTIZERS[name](), torch.randn(6, 40).to(dtype))
    layer.to(dtype)
    learner = AdaRound()
    (group,) = learner.start({'0': layer}, [], 200)
    layer(torch.randn(4, 40).to(dtype)).sum().backward()
    (soft,) = group['params']
    assert bool(soft.grad.any())
    learner.harden()
    assert layer.rounded.dtype == dtype
    values = layer.weight_quantizer(layer.rounded.float())
    assert torch.equal(layer.rounded, values.to(dtype))
