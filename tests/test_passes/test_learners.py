# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Learners and local losses, against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import convert
from mmdet_ptq.losses import FisherLoss, L2Loss
from mmdet_ptq.passes.reconstruct import (
    AdaRound,
    LearnedCodebook,
    LearnedSteps,
    LearnedWeights,
    SubsetMultipliers,
)
from mmdet_ptq.passes.reconstruct.learners import rectified_sigmoid
from mmdet_ptq.passes.reconstruct.trainer import average_gradients
from mmdet_ptq.quantizers import (
    BaseQuantizer,
    LLAQuantizer,
    SubsetQuantizer,
    UniformQuantizer,
)


def layer_with(quantizer, weight):
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
    model[0].weight.data = weight
    convert(model)
    layer = model[0]
    layer.attach(quantizer)
    if not quantizer.fit(weight):
        rows = quantizer.granularity.rows(weight)
        quantizer.set_range(rows.amin(1), rows.amax(1))
    return layer


QUANTIZERS = {
    'uniform': lambda: UniformQuantizer(
        3, granularity='channel', role='weight'
    ),
    'symmetric': lambda: UniformQuantizer(4, symmetric=True, role='weight'),
    'llaq': lambda: LLAQuantizer(3, role='weight'),
    'llaq-zero': lambda: LLAQuantizer(4, role='weight'),
    'subset': lambda: SubsetQuantizer(3, role='weight'),
}


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


def test_adaround_needs_soft_rounding():
    class Hard(BaseQuantizer):
        set_range = encoding = num_rows = parameter_bits = None

    model = nn.Sequential(nn.Linear(2, 2))
    convert(model)
    model[0].weight_quantizer = Hard(4)
    with pytest.raises(QuantConfigError, match='a Hard has no soft rounding'):
        AdaRound().start({'0': model[0]}, [], 10)


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


def test_learned_steps():
    q = UniformQuantizer(4)
    unset = UniformQuantizer(4)
    q.set_range(torch.tensor([-1.0]), torch.tensor([2.0]))
    learner = LearnedSteps()
    (group,) = learner.start({}, [q, unset], 500)
    assert group['params'] == [q.scale] and group['cosine']
    assert group['lr'] == pytest.approx(2e-4 * 2 * 0.2)
    q.scale.data.mul_(2)
    learner.harden()
    assert not isinstance(q.scale, nn.Parameter)
    assert float(q.scale) == pytest.approx(0.4)
    (group,) = LearnedSteps(lr=0.1, cosine=False).start({}, [q], 500)
    assert group['lr'] == 0.1 and not group['cosine']


def test_gradients_of_a_codebook_are_cut():
    """The norm of each layer's is 1 at most, direction and others stay."""
    layer = layer_with(QUANTIZERS['llaq'](), torch.randn(4, 10))
    codebook, rounding = LearnedCodebook(), AdaRound()
    groups = [*codebook.start({'0': layer}, [], 9)]
    groups += rounding.start({'0': layer}, [], 9)
    optimizer = torch.optim.Adam(groups)
    for group in groups:
        for parameter in group['params']:
            parameter.grad = torch.full_like(parameter, 3.0)
    average_gradients(optimizer)
    quantizer = layer.weight_quantizer
    for parameter in (quantizer.log_k, quantizer.a):
        share = parameter.numel() ** -0.5
        torch.testing.assert_close(
            parameter.grad, torch.full_like(parameter, share)
        )
        parameter.grad = parameter.grad / 8
    (soft,) = groups[-1]['params']
    assert bool((soft.grad == 3).all())
    average_gradients(optimizer)
    torch.testing.assert_close(
        quantizer.a.grad, torch.full_like(quantizer.a, share / 8)
    )


def test_codebook_is_fixed_before_rounding_decodes():
    layer = layer_with(QUANTIZERS['llaq'](), torch.randn(4, 30))
    codebook, rounding = LearnedCodebook(), AdaRound()
    with torch.no_grad():  # as in a pass
        codebook.start({'0': layer}, [], 100)
        rounding.start({'0': layer}, [], 100)
    quantizer = layer.weight_quantizer
    before = layer.quantized_weight().detach()
    with torch.no_grad():
        quantizer.a.add_(0.3)
    moved = layer.quantized_weight()
    assert not torch.equal(moved, before)
    moved.sum().backward()
    assert quantizer.a.grad.any() and quantizer.log_k.grad.any()
    codebook.harden()
    rounding.harden()
    assert torch.equal(quantizer(layer.rounded), layer.rounded)


@pytest.mark.parametrize('symmetric', [False, True])
def test_ends_have_the_slope_of_the_relaxed_quantizer(symmetric):
    """With codes and zero point held, by finite differences."""
    q = UniformQuantizer(3, symmetric=symmetric).double()
    q.set_range(torch.tensor([-1.3]), torch.tensor([2.1]))
    plain_x = torch.linspace(-4, 4, 101)
    fixed = q(plain_x)
    q.learn_ends()
    torch.testing.assert_close(q(plain_x).detach(), fixed)
    x = plain_x.clone().requires_grad_()
    q(x).sum().backward()
    inside = (plain_x > float(fixed.min())) & (plain_x < float(fixed.max()))
    assert torch.equal(x.grad[inside], torch.ones(int(inside.sum())))
    outside = (plain_x < fixed.min() - 0.5) | (plain_x > fixed.max() + 0.5)
    assert not x.grad[outside].any()
    # above the range the output is the upper end: (n - z) s
    q.zero_grad()
    q(torch.tensor([100.0])).sum().backward()
    if symmetric:
        # s = (high - low) / 7, top code 3
        assert float(q.high.grad) == pytest.approx(3 / 7)
        assert float(q.low.grad) == pytest.approx(-3 / 7)
    else:
        # (n - z) s with z = -low / s relaxed: n s + low = high
        assert float(q.high.grad) == pytest.approx(1.0, abs=0.1)
        assert float(q.low.grad) == pytest.approx(0.0, abs=0.1)
    with torch.no_grad():
        q.high.mul_(1.5)
        learned = q(plain_x)
    q.learn_ends(False)
    torch.testing.assert_close(q(plain_x), learned)
    assert not isinstance(q.scale, nn.Parameter)


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize(
    ('low', 'high'), [(-3.0, 1.0), (-1.0, 3.0), (0.5, 2.0), (-2.0, -0.5)]
)
def test_ends_anywhere_are_fixed_as_they_were_used(symmetric, low, high):
    """Also where an optimizer has pushed them over zero."""
    q = UniformQuantizer(3, symmetric=symmetric)
    q.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    q.learn_ends()
    x = torch.linspace(-4, 4, 101)
    with torch.no_grad():
        q.low.fill_(low)
        q.high.fill_(high)
        learned = q(x)
    assert float(q(torch.zeros(1))) == 0
    q.learn_ends(False)
    torch.testing.assert_close(q(x), learned)


def test_ends_of_each_level():
    q = UniformQuantizer(3, per_level=True)
    q.set_range(torch.tensor([[-1.0], [-2.0]]), torch.tensor([[3.0], [9.0]]))
    x = torch.linspace(-10, 10, 101)
    fixed = [q(x, level) for level in (0, 1)]
    assert not torch.equal(*fixed)
    q.learn_ends()
    for level in (0, 1):
        torch.testing.assert_close(q(x, level).detach(), fixed[level])
    q(x, 1).sum().backward()
    assert not q.high.grad[0].any() and q.high.grad[1].any()
    q.learn_ends(False)
    for level in (0, 1):
        torch.testing.assert_close(q(x, level), fixed[level])


def test_learned_weights_take_bias_and_ranges_along():
    torch.manual_seed(0)
    layer = layer_with(QUANTIZERS['uniform'](), torch.randn(4, 10))
    layer.shift_bias(torch.full((4,), 0.25))
    act = UniformQuantizer(4)
    act.set_range(torch.tensor([0.0]), torch.tensor([3.0]))
    learner = LearnedWeights()
    groups = learner.start({'0': layer}, [act], 100)
    # ends of weights, weights, biases, ends of activations
    rates = [g['lr'] for g in groups]
    levels = 2**layer.weight_quantizer.bits - 1
    width = layer.weight_quantizer.high - layer.weight_quantizer.low
    step = float(width.mean()) / levels
    ends = 2e-4 * 20**0.5
    assert rates == pytest.approx(
        [ends * step, 2 / 100 * step, 1e-3, ends * 3 / 15]
    )
    assert all(g['cosine'] for g in groups)
    nearest = layer.weight_quantizer(layer.weight).detach()
    torch.testing.assert_close(layer.quantized_weight().detach(), nearest)
    with torch.no_grad():
        groups[1]['params'][0].add_(0.2)
        groups[2]['params'][0].add_(1.0)
    learner.harden()
    assert not torch.equal(layer.rounded, nearest)
    torch.testing.assert_close(layer.bias_shift, torch.full((4,), 1.25))
    assert not layer.bias_shift.requires_grad
    absolute = LearnedWeights(relative=False, lr_bias=0.5)
    groups = absolute.start({'0': layer}, [act], 100)
    assert [g['lr'] for g in groups] == [1e-3, 1e-5, 0.5, 0.1]
    assert not any(g['cosine'] for g in groups)


def test_learned_weights_of_uneven_levels():
    layer = layer_with(QUANTIZERS['subset'](), torch.randn(4, 10))
    groups = LearnedWeights().start({'0': layer}, [], 100)
    step = 2 * float(layer.weight.abs().max()) / 2**3
    assert layer.weight_quantizer.bits == 3
    assert groups[0]['lr'] == pytest.approx(2 / 100 * step)


def test_subset_multipliers():
    torch.manual_seed(0)
    layer = layer_with(QUANTIZERS['subset'](), torch.randn(4, 10))
    nearest = layer.weight_quantizer(layer.weight).detach()
    learner = SubsetMultipliers()
    (group,) = learner.start({'0': layer}, [], 100)
    assert group['cosine'] and len(group['params']) == 2
    torch.testing.assert_close(layer.quantized_weight().detach(), nearest)
    off = float((layer.weight.abs() - nearest.abs()).norm())
    for progress, factor in ((0, 1e-2), (0.2, 1e-2), (0.6, 5.5e-3), (1, 1e-3)):
        assert float(learner.penalty(progress)) == pytest.approx(
            factor * off, rel=1e-4
        )
    with torch.no_grad():
        group['params'][0].mul_(2)
    learner.harden()
    assert torch.equal(
        layer.rounded, layer.weight_quantizer(layer.weight * 2).detach()
    )


def test_l2_by_hand():
    maps = torch.tensor([[[[1.0, 2.0]], [[0.0, -1.0]]]])  # (1, 2, 1, 2)
    rows = torch.tensor([[3.0, 0.0, 0.0]])
    zero = [torch.zeros_like(maps), torch.zeros_like(rows)]
    # three positions in all: 1 + 0, 4 + 1 and 9
    assert float(L2Loss()([maps, rows], zero, [])) == pytest.approx(15 / 3)
    cubes = (1 + 8 + 1 + 27) / 3
    loss = L2Loss(p=3, weight=2)([maps, rows], zero, [])
    assert float(loss) == pytest.approx(2 * cubes)


def test_fisher_weights_by_hand():
    gradient = torch.tensor([[1e-3, -3e-3]])
    mean = float(gradient.double().square().mean())
    whole = FisherLoss().weigh(gradient, mean)
    torch.testing.assert_close(whole, torch.tensor([[0.2, 1.8]]))
    # the scale of the loss is not seen
    tiny = gradient * 1e-18
    torch.testing.assert_close(FisherLoss().weigh(tiny, mean * 1e-36), whole)
    damped = FisherLoss(damping=0.5).weigh(gradient, mean)
    torch.testing.assert_close(damped, torch.tensor([[0.6, 1.4]]))
    brecq = FisherLoss(form='brecq').weigh(gradient, mean)
    torch.testing.assert_close(brecq, torch.tensor([[1.001, 1.003]]) ** 2)
    raw = FisherLoss(form='raw').weigh(gradient, mean)
    torch.testing.assert_close(raw, gradient**2)
    ones = torch.ones(1, 2)
    assert torch.equal(FisherLoss().weigh(torch.zeros(1, 2), mean), ones)
    assert torch.equal(FisherLoss().weigh(gradient, 0.0), ones)
    loss = FisherLoss(weight=3)([2 * ones], [ones], [whole])
    assert float(loss) == pytest.approx(3 * 2.0)
