# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scales and zero points that are refined around the best."""

import pytest
import torch

from mmdet_ptq.quantizers import Refines, UniformQuantizer
from mmdet_ptq.quantizers.uniform_search import Steps


def squares(q, rows, found):
    return (q.trial(rows, found) - rows[:, None]).double().square().sum(-1)


def best_of(q, rows, keep=4, each=8, steps=4, count=128):
    """The search by hand: errors of each stage's best."""
    found = q.coarse(rows, count)
    history = []
    for _ in range(steps):
        errors = squares(q, rows, found)
        history.append(errors.amin(1))
        index = errors.topk(keep, 1, largest=False).indices
        found = q.refined(Steps(*(c.gather(1, index) for c in found)), each)
    errors = squares(q, rows, found)
    return torch.stack([*history, errors.amin(1)]), found, errors.argmin(1)


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('bits', [2, 4, 6, 8])
def test_never_worse_than_the_first_grid(bits, symmetric):
    torch.manual_seed(0)
    rows = torch.randn(5, 200) * torch.tensor([[0.1], [1], [1], [9], [1]])
    rows[1] = rows[1].relu()
    rows[2] += 3
    rows[3, 0] = 100
    q = UniformQuantizer(bits, symmetric, 'channel', axis=0)
    assert isinstance(q, Refines)
    errors, found, at = best_of(q, rows)
    assert bool((errors[1:] <= errors[:-1]).all())
    assert bool((errors[-1] < errors[0]).any())
    q.adopt(found, at)
    assert bool(q.initialized)
    # what was tried is what it then gives
    left = (q(rows) - rows).double().square().sum(1)
    torch.testing.assert_close(left, errors[-1], rtol=1e-5, atol=0)
    # about as good as every pair of 200 scales and all zero points
    for k, row in enumerate(rows[:, None]):
        full = row.abs().max() * 2 / (2**bits - 1)
        scales = torch.linspace(0.05, 1.05, 200) * full
        zeros = torch.arange(2**bits) if not symmetric else torch.tensor([0])
        tried = Steps(
            scales.repeat(len(zeros))[None],
            zeros.repeat_interleave(200)[None].int(),
            scales[None],
        )
        assert errors[-1, k] < 1.1 * squares(q, row, tried).min()


@pytest.mark.parametrize('bits', [2, 3, 5, 8])
def test_first_candidates(bits):
    """The zero point of the range, 0, and 8 scales at least."""
    rows = torch.tensor([[-1.0, 0.0, 3.0], [0.0, 2.0, 3.0], [-3.0, -1, -0.5]])
    q = UniformQuantizer(bits, granularity='channel', axis=0)
    scale, zero, pitch = q.coarse(rows, 128)
    assert scale.shape == zero.shape == pitch.shape == (3, 128)
    steps = 2**bits - 1
    for k, wanted in enumerate((round(steps / 4), 0, steps)):
        assert {0, wanted} <= set(zero[k].tolist())
        assert zero[k].min() >= 0 and zero[k].max() <= steps
        assert len(scale[k].unique()) >= 8
        full = rows[k].amax().clamp(min=0) - rows[k].amin().clamp(max=0)
        wide = float(full) / steps * (1 + 1 / steps)
        assert scale[k].max() == pytest.approx(wide)
        # with each zero point, pitch apart
        one = scale[k][zero[k] == wanted].sort().values
        torch.testing.assert_close(
            one.diff(), pitch[k, 0].expand(len(one) - 1)
        )


def test_by_hand():
    """Quantiles 0.1 and 0.9 of 0..10 are 1 and 9."""
    q = UniformQuantizer(2, symmetric=True)
    scale, zero, pitch = q.coarse(torch.arange(11.0)[None], 16)
    # s = max / 1.5, and one code of three more
    top = 10 / 1.5 * 4 / 3
    torch.testing.assert_close(scale[0], torch.linspace(6, top, 16))
    assert not zero.any()
    near = q.refined(Steps(scale[:, :1], zero[:, :1], pitch[:, :1]), 4)
    step = (top - 6) / 15
    wanted = 6 + step * torch.tensor([-0.5, -0.25, 0, 0.25])
    torch.testing.assert_close(near.scale[0], wanted)
    torch.testing.assert_close(near.pitch[0], torch.full((4,), step / 4))


def test_the_grid_in_force_is_among_them():
    rows = torch.randn(2, 50)
    q = UniformQuantizer(4, granularity='channel', axis=0)
    q.set_range(torch.tensor([-0.3, -7]), torch.tensor([1.1, 0.0]))
    found = q.coarse(rows, 128)
    assert torch.equal(found.scale[:, -1], q.scale)
    assert torch.equal(found.zero_point[:, -1], q.zero_point)
    # kept candidates are among those around them
    near = q.refined(Steps(*(t[:, -1:] for t in found)), 5)
    assert bool((near.scale == q.scale[:, None]).any(1).all())
    # a grid of other rows says nothing
    assert q.coarse(rows[:1], 128).scale.shape == (1, 128)


def test_constant_rows():
    q = UniformQuantizer(4, granularity='channel', axis=0)
    rows = torch.stack([torch.zeros(9), torch.full((9,), 2.0)])
    errors, found, at = best_of(q, rows)
    assert torch.isfinite(errors).all()
    q.adopt(found, at)
    torch.testing.assert_close(q(rows), rows)


def test_adopts_for_levels():
    q = UniformQuantizer(2, per_level=True)
    found = Steps(
        torch.tensor([[1.0, 2.0]]).repeat(3, 1),
        torch.tensor([[0, 1]]).repeat(3, 1).int(),
        torch.ones(3, 2),
    )
    q.adopt(found, torch.tensor([[0], [1], [0]]))
    assert q.scale.tolist() == [[1], [2], [1]]
    assert q.zero_point.tolist() == [[0], [1], [0]]
    assert q.num_levels() == 3
