# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The quantizer: values, ranges, gradients, storage."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import check_codes, check_output, check_state, tensors
from subset_kit import UNIVERSE, fitted, make, samples

from mmdet_ptq.quantizers import SubsetQuantizer
from mmdet_ptq.quantizers.subset import search as subset_search
from mmdet_ptq.registry import QUANTIZERS, build_from


def test_universal_set():
    want = [m / 32 for m in UNIVERSE]
    assert subset_search.universal_set().tolist() == want


def test_layer_shapes():
    w = samples((4, 6), 'normal', 1)
    plain = fitted(w, 3)
    for weight, axis in (
        (w, 0),
        (w.view(4, 6, 1, 1), None),
        (w.view(4, 1, 2, 3), 0),  # depthwise
        (w.view(4, 2, 3, 1).transpose(0, 1), 1),  # transposed convolution
        (w.view(4, 2, 1, 3).contiguous(memory_format=torch.channels_last), 0),
    ):
        q = fitted(weight, 3, axis=axis)
        assert torch.equal(q.scale, plain.scale) and q.scale.shape == (4,)
        assert torch.equal(q.granularity.rows(q(weight)), plain(w))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    x=tensors(),
    bits=st.sampled_from([2, 3, 4]),
    kind=st.sampled_from(['tensor', 'channel']),
    axis=st.sampled_from([0, 1]),
)
def test_promises_after_a_fit(x, bits, kind, axis):
    def new():
        return SubsetQuantizer(bits, kind, axis)

    q = new()
    assert q.fit(x) is True
    with torch.no_grad():
        y = q.eval()(x)
    check_codes(q, x, y)
    check_output(q, x, y)
    check_state(q, new(), x, y)
    assert q.scale.shape == (1 if kind == 'tensor' else x.shape[axis],)
    if x.numel():
        assert bool((y * x >= 0).all())  # no sign is lost
        assert (y - x).double().norm() <= x.double().norm() * (1 + 1e-6)


def test_extremes():
    w = samples((3, 8), 'normal', 0)
    for factor in (1e-38, 1e-12, 1e20, 1e37):
        q = fitted(w * factor, 4)
        assert torch.isfinite(q(w * factor)).all()
        want = fitted(w, 4)(w) * factor
        if factor != 1e-38:
            assert torch.allclose(q(w * factor), want, rtol=1e-5)
    # the least values are normal numbers, apart even without subnormal ones
    q = make([0.03125, 1.0], [0.0])
    values = q.values(torch.arange(4)).abs()
    assert values.min() >= torch.finfo(torch.float32).tiny
    zeros = torch.zeros(3, 8)
    assert torch.equal(fitted(zeros, 2)(zeros), zeros)
    # one channel of zeros, under magnitudes without a zero
    w = torch.cat([torch.tensor([[0.5, -1.0] * 4]), torch.zeros(1, 8)])
    q = fitted(w.repeat(1, 9)[:, 1:], 2)
    assert torch.isfinite(q.scale).all() and q(w)[1].abs().max() < 1e-6
    assert fitted(torch.zeros(0, 3), 2)(torch.zeros(0, 3)).shape == (0, 3)
    assert fitted(torch.tensor([[2.0]]), 4)(torch.tensor([2.0])) == 2.0
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match='NaN or Inf'):
            SubsetQuantizer().fit(torch.tensor([[1.0, bad]]))


def test_by_hand_without_zero():
    q = make([0.25, 1.0], [2.0])  # -2 -0.5 0.5 2, middles -1.25 0 1.25
    x = torch.tensor([-9.0, -1.3, -1.25, -0.1, -0.0, 0.0, 1.25, 1.3, 9.0])
    assert q.encode(x).tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    want = [-2.0, -2.0, -0.5, -0.5, 0.5, 0.5, 0.5, 2.0, 2.0]
    assert q(x).tolist() == want
    x = torch.tensor([-9.0, -2.0, -0.6, -0.5, -0.4, 0.5, 1.9, 2.0, 9.0])
    assert q.lower_codes(x).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_by_hand_with_zero():
    q = make([0.0, 0.25, 0.5, 1.0], [4.0])  # -4 -2 -1 0 1 2 4
    x = torch.tensor([-9.0, -3.0, -0.5, -0.0, 0.5, 0.6, 1.5, 3.1, 9.0])
    assert q.encode(x).tolist() == [0, 1, 3, 3, 3, 4, 4, 6, 6]
    assert q(x).tolist() == [-4, -2, 0, 0, 0, 1, 1, 4, 4]
    x = torch.tensor([-9.0, -3.9, -0.1, 0.0, 0.1, 2.0, 3.9, 4.0, 9.0])
    assert q.lower_codes(x).tolist() == [0, 0, 2, 3, 3, 5, 5, 5, 5]
    # the spare code of the second zero
    assert q.decode(torch.tensor([6, 7])).tolist() == [4, 4]


@pytest.mark.parametrize('kind, k', [('tensor', 1), ('channel', 3)])
@pytest.mark.parametrize('zero', [False, True])
def test_gradients(kind, k, zero):
    q = make(
        [0.0 if zero else 0.1, 0.25, 0.5, 1.0],
        [1.0, 2.0, 3.0][:k],
        granularity=kind,
    )
    x = samples((3, 50), 'normal', 5) * 2
    # on the outermost value itself: still inside
    x[:, 0] = q.scale
    before = q(x)
    q.learn_step()
    assert [name for name, _ in q.named_parameters()] == ['scale']
    x.requires_grad_()
    y = q.train()(x)
    assert torch.equal(y, before)
    grad = samples((3, 50), 'normal', 6)
    y.backward(grad)
    scale = q.scale.detach()[:, None]
    inside = (x.detach().abs() <= scale).expand(3, 50)
    assert 0 < inside.sum() < inside.numel() and bool(inside[:, 0].all())
    assert torch.equal(x.grad, grad * inside)
    # with fixed codes a value is linear in its scale
    want = (grad * before / scale).sum() if k == 1 else None
    if k == 3:
        want = (grad * before / scale).sum(1)
    assert torch.allclose(q.scale.grad, want.reshape(k), rtol=1e-5)
    q.scale.grad = None
    (q.values(q.encode(x)) * grad).sum().backward()
    assert torch.allclose(q.scale.grad, want.reshape(k), rtol=1e-5)
    assert not q.decode(q.encode(x)).requires_grad


def test_learned_scale_stays_positive():
    q = make([0.0, 1.0], [2.0])
    q.learn_step()
    q.learn_step()
    for value in (-0.25, 0.0):
        q.scale.data.fill_(value)
        x = torch.tensor([0.3])
        assert torch.equal(q(x), q.decode(q.encode(x)))
        assert q.scale.item() == max(abs(value), 2.0**-100)
    q.scale.data.fill_(-0.5)
    q.learn_step(False)
    assert not list(q.parameters()) and q.scale.item() == 0.5
    other = SubsetQuantizer(2)
    other.set_range(-torch.ones(3), torch.ones(3))
    other.learn_step()
    other.load_state_dict(q.state_dict())
    assert torch.equal(other.scale, q.scale)
    # a fit keeps it a parameter
    other.fit(torch.randn(4, 5))
    assert other.scale.shape == (4,) and len(list(other.parameters())) == 1


def test_set_range():
    q = SubsetQuantizer(3, 'tensor')
    q.set_range(torch.tensor([-3.0]), torch.tensor([2.0]))
    assert q.scale.tolist() == [3.0]
    assert q.magnitudes.tolist() == [0.0, 6 / 32, 16 / 32, 1.0]
    q.fit(samples((4, 30), 'normal', 0))
    q.set_range(torch.tensor([[0.0]]), torch.tensor([[2.0]]))
    assert q.scale.tolist() == [2.0] and q.magnitudes[1] == 6 / 32
    for bits, want in ((2, [0, 32]), (4, [0, 2, 4, 8, 12, 17, 20, 32])):
        got = SubsetQuantizer(bits).magnitudes * 32
        assert got.tolist() == want


def test_nan_is_not_hidden():
    y = make([0.0, 1.0], [2.0])(torch.tensor([math.nan, 1.5, math.inf]))
    assert torch.isnan(y).tolist() == [True, False, False]
    assert y[1:].tolist() == [2.0, 2.0]


def test_storage_bits():
    shape = (8, 4, 3, 3)
    assert SubsetQuantizer(3).storage_bits(shape) == 288 * 3 + 8 * 32 + 15
    q = SubsetQuantizer(4, 'tensor')
    assert q.storage_bits(shape) == 288 * 4 + 32 + 15


@pytest.mark.parametrize('bits', [1, 5, 8, 4.0, True])
def test_wrong_bits(bits):
    with pytest.raises(ValueError, match=r'2, 3 or 4.*(Uniform|LLA)'):
        SubsetQuantizer(bits)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(role='act'), "'weight'.*UniformQuantizer"),
        (dict(granularity='group'), 'tensor or channel'),
        (dict(granularity='layer'), 'tensor or channel'),
        (dict(axis=0.5), 'axis'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SubsetQuantizer(**kwargs)


def test_from_a_config():
    q = build_from(QUANTIZERS, dict(type='SubsetQuantizer', bits=2))
    assert q.granularity.kind == 'channel' and q.granularity.axis == 0
    with pytest.raises(ValueError, match='4 scales do not fit'):
        fitted(torch.randn(4, 3), 2)(torch.randn(5, 3))
