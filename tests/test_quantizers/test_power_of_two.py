# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Channel scales that differ by powers of two."""

import pytest
import torch
from seeded import seeded

from mmdet_ptq.quantizers import PowerOfTwoQuantizer


def rows():
    """Channels whose ranges differ a lot, around means of their own."""
    x = torch.randn(12, 300, generator=seeded(0))
    return x * 2.0 ** torch.linspace(-5, 2, 12)[:, None] + 0.1


def test_range_by_hand():
    """Two bits over -2 to 4: a largest step of 2, one of it below zero."""
    q = PowerOfTwoQuantizer(2)
    low = torch.tensor([-2.0, 0.0, -0.2, -1.1, 0.0])
    high = torch.tensor([4.0, 1.0, 0.5, 1.1, 0.0])
    q.set_range(low, high)
    # S = 2 / 2^3; the channels reach up to 2 and down to 1 steps, and
    # another half of one
    assert q.zero_point.tolist() == [1] * 5
    assert q.exponents.tolist() == [3, 1, 0, 2, 0]
    assert q.scale.tolist() == [2, 0.5, 0.25, 1, 0.25]


@pytest.mark.parametrize('most', [1, 3, 5])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_ratios_are_powers_of_two(bits, most):
    x = rows()
    q = PowerOfTwoQuantizer(bits, most, axis=0)
    q.set_range(x.amin(1), x.amax(1))
    for fitted in (False, True):
        if fitted:
            q.fit_points(x, torch.ones_like(x))
        ratio = (q.scale / q.scale.min()).log2()
        assert torch.equal(ratio, ratio.round())
        assert torch.equal(ratio, (q.exponents - q.exponents.min()).float())
        assert q.exponents.min() >= 0 and q.exponents.max() <= most
        assert len(q.zero_point.unique()) == 1


def test_fit_takes_the_exponents_of_least_error():
    """FQ-ViT: argmin of each channel, S from the range of all."""
    x, bits = rows(), 4
    q = PowerOfTwoQuantizer(bits, axis=0)
    q.set_range(x.amin(1), x.amax(1))
    ranged = (q(x) - x).square().mean()
    low, high = x.min().clamp(max=0), x.max()
    scale = (high - low) / 15
    zero = (-(low / scale).round()).clamp(0, 15)
    errors = []
    for a in range(4):
        s = scale / 8 * 2**a
        y = ((x / s).round() + zero).clamp(0, 15).sub(zero) * s
        errors.append((y - x).square().mean(1))
    paper = torch.stack(errors).amin(0).mean()
    q.fit_points(x, torch.ones_like(x))
    found = (q(x) - x).square().mean()
    # a part of the range may do better than all of it
    assert found <= paper * (1 + 1e-5) and paper < ranged


def test_one_scale_would_err_more():
    x = rows()
    q = PowerOfTwoQuantizer(8, axis=0)
    q.set_range(x.amin(1), x.amax(1))
    q.fit_points(x, torch.ones_like(x))
    off = (q(x) - x).square().mean(1)
    step = (x.max() - x.min().clamp(max=0)) / 255
    assert off[0] < step**2 / 12 / 30


def test_integers_add_up_after_shifts():
    """What the layer norm of FQ-ViT reads: codes of one scale."""
    x = rows()
    q = PowerOfTwoQuantizer(8, axis=0)
    q.set_range(x.amin(1), x.amax(1))
    e = q.encoding()
    whole = (e.encode(x) - e.zero_point[:, None]) << q.exponents[:, None]
    least = q.scale[0] / 2.0 ** q.exponents[0]
    torch.testing.assert_close(whole * least, q(x))


def test_storage_and_levels():
    q = PowerOfTwoQuantizer(8, per_level=True, axis=0)
    x = rows()
    q.set_range(
        torch.stack([x.amin(1), x.amin(1) * 9]),
        torch.stack([x.amax(1), x.amax(1) * 9]),
    )
    assert q.num_levels() == 2 and q.num_rows() == 24
    # a scale and a zero point a level, two bits an exponent
    assert q.storage_bits(x.shape) == x.numel() * 8 + 2 * 40 + 24 * 2
    torch.testing.assert_close(q(x * 9, 1), q(x, 0) * 9)
    with pytest.raises(IndexError, match='level 2'):
        q(x, 2)


@pytest.mark.parametrize(
    'given, told',
    [
        (dict(granularity='tensor'), 'UniformQuantizer'),
        (dict(max_exponent=0), 'max_exponent'),
        (dict(max_exponent=16), '1 to 15'),
        (dict(role='weight'), "role 'act'"),
    ],
)
def test_wrong_arguments(given, told):
    with pytest.raises(ValueError, match=told):
        PowerOfTwoQuantizer(4, **given)
