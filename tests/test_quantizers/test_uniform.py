# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import math

import numpy as np
import pytest
import torch
from torch import nn

from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.quantizers import fake_quantize as chain
from mmdet_ptq.quantizers.base import to_dtype


def make(low, high, bits=2, **kwargs):
    q = UniformQuantizer(bits, **kwargs)
    q.set_range(torch.tensor(low), torch.tensor(high))
    return q.eval()


def test_affine_by_hand():
    q = make([-1.0], [2.0])  # s = 1, z = 1, values -1 0 1 2
    assert q.scale.tolist() == [1.0] and q.zero_point.tolist() == [1]
    x = torch.tensor([-9.0, -1.0, -0.5, -0.4, 0.0, 0.5, 0.6, 1.5, 2.5, 9.0])
    assert q.encode(x).tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3, 3]
    assert q(x).tolist() == [-1, -1, 0, 0, 0, 0, 1, 2, 2, 2]


def test_symmetric_by_hand():
    q = make([-3.0], [1.0], symmetric=True)  # s = 3 / 1.5 = 2
    assert q.scale.tolist() == [2.0] and q.zero_point.tolist() == [0]
    x = torch.tensor([-9.0, -3.0, -1.0, 0.0, 1.0, 1.1, 9.0])
    assert q.encode(x).tolist() == [-2, -2, 0, 0, 0, 1, 1]
    assert q(x).tolist() == [-4, -4, 0, 0, 0, 2, 2]


@pytest.mark.parametrize(
    'low, high, scale, zero',
    [
        (1.0, 3.0, 1.0, 0),  # widened to hold zero
        (-3.0, -1.0, 1.0, 3),
        (0.0, 0.0, 1e-8, 0),
        (-1.5, 1.5, 1.0, 2),  # 1.5 rounds to even
    ],
)
def test_grids(low, high, scale, zero):
    q = make([low], [high])
    assert q.scale.item() == pytest.approx(scale)
    assert q.zero_point.item() == zero


def onnx_qdq(y, s, z, qmin, qmax):
    """QuantizeLinear and DequantizeLinear by numpy, which divides."""
    shape = (1, -1, 1, 1)
    y, s, z = (t.cpu().numpy() for t in (y, s, z))
    s, z = s.reshape(shape), z.reshape(shape)
    codes = np.rint(y / s).astype(np.float32) + z.astype(np.float32)
    codes = np.clip(codes, qmin, qmax)
    return ((codes - z.astype(np.float32)) * s).astype(np.float32)


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('bits', [2, 3, 8])
@pytest.mark.parametrize('block', [8, 64, 1 << 17])
def test_arithmetic_is_that_of_onnx(symmetric, bits, block, monkeypatch):
    monkeypatch.setattr(chain, 'BLOCK', block)
    torch.manual_seed(0)
    for kind, k in (('tensor', 1), ('channel', 6), ('group', 3)):
        q = UniformQuantizer(
            bits, symmetric, kind, group_size=2 if kind == 'group' else None
        )
        q.set_range(-torch.rand(k), torch.rand(k))
        s, z = (
            t.repeat_interleave(2 if kind == 'group' else 1)
            for t in (q.scale, q.zero_point)
        )
        x = torch.randn(2, 6, 5, 7)
        # every tie, and its neighbours
        ties = torch.randint(-300, 300, x.shape) + 0.5
        ties = ties * (s if kind == 'tensor' else s.view(1, 6, 1, 1))
        for v in (x, ties, ties * (1 + 6e-8), ties * (1 - 6e-8)):
            for y in (
                v,
                v.to(memory_format=torch.channels_last),
                v[:, :, 1:],
                v.transpose(2, 3),
                v[:1].expand(2, 6, 5, 7),
            ):
                want = onnx_qdq(y, s, z, q.qmin, q.qmax)
                got = q(y)
                assert torch.equal(
                    got.contiguous().view(torch.int32).cpu(),
                    torch.from_numpy(want).view(torch.int32),
                )
                assert got.stride() == torch.empty_like(y).stride()


def test_huge_values_keep_their_side():
    # torch's per-channel kernel overflows int64 here and gives the low end
    for kind in ('tensor', 'channel'):
        q = make([-1e-7], [1e-7], granularity=kind, axis=0)
        y = q(torch.tensor([[3e38, -3e38, math.inf]]))
        assert y[0, 0] > 0 > y[0, 1] and y[0, 2] == y[0, 0]


def test_ranges_as_wide_as_float32():
    big = torch.finfo(torch.float32).max
    for symmetric in (False, True):
        for bits in (2, 8):
            q = make([-big], [big], bits, symmetric=symmetric)
            y = q(torch.tensor([-big, 0.0, big]))
            assert torch.isfinite(y).all() and torch.equal(q(y), y)


def test_nan_is_not_hidden():
    assert torch.isnan(make([-1.0], [1.0])(torch.tensor([math.nan]))).all()


def test_half_saturates():
    assert to_dtype(torch.tensor(7e4), torch.float16).item() == 65504


def test_scalars_and_empties():
    q = make([-1.0], [2.0])
    assert q(torch.tensor(0.7)).item() == 1.0
    assert q(torch.empty(0, 3)).shape == (0, 3)
    q = make([-1.0] * 3, [2.0] * 3, granularity='channel')
    assert q(torch.empty(0, 3)).shape == (0, 3)
    assert q.encode(torch.empty(0, 3)).shape == (0, 3)


def test_levels():
    q = make([[0.0], [0.0]], [[3.0], [6.0]], per_level=True)
    x = torch.tensor([2.0])
    assert q(x, 0).item() == 2.0 and q(x, level=1).item() == 2.0
    assert q(torch.tensor([9.0]), 1).item() == 6.0
    with pytest.raises(IndexError, match='level 2'):
        q(x, 2)
    assert make([[0.0]], [[3.0]])(x, 4).item() == 2.0  # shared by all levels
    assert make([0.0], [3.0])(x, 4).item() == 2.0
    fresh = UniformQuantizer(2, per_level=True)
    fresh.load_state_dict(q.state_dict())
    assert fresh.scale.shape == (2, 1) and fresh.num_levels() == 2


def test_storage_bits():
    shape = (8, 4, 3, 3)
    assert UniformQuantizer(4).storage_bits(shape) == 288 * 4 + 32 + 4
    q = UniformQuantizer(4, True, 'channel', role='weight')
    assert q.storage_bits(shape) == 288 * 4 + 8 * 32
    q = UniformQuantizer(3, False, 'group', group_size=6, role='weight')
    assert q.storage_bits(shape) == 288 * 3 + 48 * (32 + 3)
    q = make([[0.0], [0.0]], [[3.0], [6.0]], bits=4, per_level=True)
    assert q.storage_bits(shape) == 288 * 4 + 2 * (32 + 4)


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('kind, k', [('tensor', 1), ('channel', 3)])
def test_learned_step_gradient(symmetric, kind, k):
    torch.manual_seed(0)
    q = UniformQuantizer(3, symmetric, kind)
    q.set_range(-torch.rand(k) - 0.2, torch.rand(k) + 0.2)
    x = torch.randn(2, 3, 4)
    before = q(x)
    q.learn_step()
    x.requires_grad_()
    y = q(x)
    assert torch.equal(y, before)
    assert [name for name, _ in q.named_parameters()] == ['scale']
    weight = torch.randn(2, 3, 4)
    (y * weight).sum().backward()
    want = [0.0] * k
    qmax = 3 if symmetric else 7
    for i in range(2):
        for c in range(3):
            for j in range(4):
                row = 0 if k == 1 else c
                s, z = q.scale[row].item(), q.zero_point[row].item()
                r = x[i, c, j].item() / s
                code = round(r) + z
                if q.qmin <= code <= q.qmax:
                    slope, through = round(r) - r, 1.0
                else:
                    slope = min(max(code, q.qmin), q.qmax) - z
                    through = 0.0
                want[row] += slope * weight[i, c, j].item()
                assert x.grad[i, c, j].item() == pytest.approx(
                    weight[i, c, j].item() * through
                )
    factor = 1 / math.sqrt(24 / k * qmax)
    assert q.scale.grad.tolist() == pytest.approx(
        [g * factor for g in want], rel=1e-4, abs=1e-5
    )


def test_learned_step_group_levels_and_dtype():
    q = UniformQuantizer(4, False, 'group', group_size=2, per_level=True)
    q.set_range(-torch.ones(2, 3), torch.ones(2, 3))
    q.learn_step()
    x = torch.randn(1, 6, 4)
    # a shared head calls it for every level before it goes backward
    (q(x, 0).square().sum() + 0 * q(x, 1).sum()).backward()
    assert q.scale.grad[0].abs().min() > 0 and q.scale.grad[1].eq(0).all()
    assert q(x.half(), 1).dtype == torch.float16


def test_learned_step_stays_positive():
    q = make([-1.0], [1.0], 4)
    q.learn_step()
    for value in (-0.25, 0.0):
        q.scale.data.fill_(value)
        y = q(torch.tensor([0.3]))
        assert torch.equal(y, q.decode(q.encode(torch.tensor([0.3]))))
        assert q.scale.item() == pytest.approx(max(abs(value), 1e-8))
    q.learn_step(False)
    assert not list(q.parameters()) and 'scale' in q.state_dict()
    other = make([-1.0], [1.0], 4)
    other.learn_step()
    other.load_state_dict(q.state_dict())
    assert torch.equal(other.scale, q.scale)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(bits=1), '2 to 8'),
        (dict(bits=9), '2 to 8'),
        (dict(bits=4.0), '2 to 8'),
        (dict(bits=True), '2 to 8'),
        (dict(role='bias'), 'act, weight'),
        (dict(granularity='layer'), 'tensor, channel, group'),
        (dict(granularity='group'), 'group_size'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        UniformQuantizer(**kwargs)


@pytest.mark.parametrize(
    'low, high, message',
    [
        ([0.0], [1.0, 2.0], 'shape'),
        ([[[0.0]]], [[[1.0]]], 'shape'),
        ([], [], 'empty'),
        ([0.0, 0.0], [1.0, 1.0], '1 row'),
        ([[0.0], [0.0]], [[1.0], [1.0]], 'per_level'),
        ([math.nan], [1.0], 'NaN'),
        ([0.0], [math.inf], 'Inf'),
        ([1.0], [0.0], 'above'),
    ],
)
def test_wrong_ranges(low, high, message):
    with pytest.raises(ValueError, match=message):
        make(low, high)


def test_wrong_number_of_channels():
    q = make([0.0] * 3, [1.0] * 3, granularity='channel')
    with pytest.raises(ValueError, match='3 scales do not fit'):
        q(torch.randn(1, 4))


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


@pytest.mark.parametrize('symmetric', [False, True])
def test_gradient_of_a_step_counts_all_that_share_it(symmetric):
    """LSQ's 1 / sqrt(N Qp): groups of one channel are channels."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 2, 6, 4).unbind()
    qmax = 7 if symmetric else 15
    for size in (1, 2, 3, 6):
        q = UniformQuantizer(4, symmetric, 'group', group_size=size)
        ends = torch.full((6 // size,), 0.9)
        q.set_range(-ends, ends)
        q.learn_step()
        (q(x) * weight).sum().backward()
        # plain autograd through a step for each element
        scale = q.scale.detach().clone().requires_grad_()
        s = scale.repeat_interleave(size)[:, None]
        z = int(q.zero_point[0])
        ratio = x / s
        code = ratio + (ratio.round() - ratio).detach() + z
        y = (code.clamp(q.qmin, q.qmax) - z) * s
        (y * weight).sum().backward()
        n = 2 * size * 4
        torch.testing.assert_close(
            q.scale.grad, scale.grad / math.sqrt(n * qmax)
        )


@pytest.mark.parametrize(
    'symmetric, qmin, qmax',
    [(True, -7, 7), (False, -8, 7), (False, 1, 15), (False, -15, 0)],
)
def test_a_subclass_with_other_codes(symmetric, qmin, qmax):

    class Other(UniformQuantizer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.qmin, self.qmax = qmin, qmax

    q = Other(4, symmetric)
    q.set_range(torch.tensor([-1.0]), torch.tensor([2.0]))
    n = qmax - qmin
    step = 2 / (n / 2) if symmetric else 3 / n
    assert float(q.scale) == pytest.approx(step)
    zero = 0 if symmetric else round(1 / step) + qmin
    assert int(q.zero_point) == zero
    # both ends are within half a step, beyond them all is clipped
    x = torch.tensor([-1.0, 0.0, 2.0])
    assert (q(x) - x).abs().max() <= step / 2 + 1e-6
    assert q.encode(torch.tensor([-9.0, 9.0])).tolist() == [qmin, qmax]
    # the range that is read back gives the grid again
    before = q.scale.clone(), q.zero_point.clone()
    q.set_range(*q.range())
    torch.testing.assert_close(q.scale, before[0])
    assert torch.equal(q.zero_point, before[1])
    want = q(x)
    q.learn_ends()
    torch.testing.assert_close(q(x), want)
    q.learn_ends(False)
    q.learn_step()
    q(x.requires_grad_()).sum().backward()
    assert q.scale.grad.isfinite().all()
