# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Channels of an image, and rows of a softmax, in the nearest group."""

import pytest
import torch
from seeded import seeded

from mmdet_ptq.context import forward_context
from mmdet_ptq.errors import CalibrationError, PTQError
from mmdet_ptq.quantizers import InstanceGroupQuantizer, UniformQuantizer

LOW = torch.tensor([-0.4, -1.0, -3.0])
HIGH = torch.tensor([0.5, 1.5, 2.0])


def tokens(seed=0):
    """An image of 5 x 7 tokens, whose 6 channels are of several widths."""
    x = torch.randn(5, 7, 6, generator=seeded(seed))
    return x * torch.tensor([0.2, 2.0, 0.6, 0.1, 1.0, 0.4])


def three(bits=4, clipped=0.05):
    q = InstanceGroupQuantizer(bits, num_groups=3, axis=-1, clipped=clipped)
    q.set_range(LOW, HIGH)
    return q


def product_of_integers(x, weight, q, w):
    """Eq. 7 in plain loops: a sum of integers for each group, then floats."""
    scale, zero = (t.tolist() for t in q.grids.parameters_of())
    codes, weights = q.encode(x).tolist(), w.encode(weight).tolist()
    w_scale, w_zero = (t.tolist() for t in w.parameters_of())
    groups = []
    for c in range(x.shape[1]):
        least, most = min(x[:, c].tolist()), max(x[:, c].tolist())
        ends = zip(LOW.tolist(), HIGH.tolist(), strict=True)
        if q.clipped is None:
            cost = [(most - u) ** 2 + (least - low) ** 2 for low, u in ends]
        else:
            cost = [
                (u - low) ** 2 / (12 * 15**2)
                + q.clipped * max(most - u, 0) ** 2
                + q.clipped * max(low - least, 0) ** 2
                for low, u in ends
            ]
        groups.append(cost.index(min(cost)))
    assert len(set(groups)) == 3
    out = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for n in range(len(x)):
        for m in range(len(weight)):
            for i in range(3):
                total = sum(
                    (codes[n][c] - zero[i]) * (weights[m][c] - w_zero[m])
                    for c in range(x.shape[1])
                    if groups[c] == i
                )
                out[n, m] += total * scale[i] * w_scale[m]
    return out


@pytest.mark.parametrize('clipped', [None, 0.05])
def test_a_product_of_integers_for_each_group(clipped):
    x, weight = tokens()[0], torch.randn(4, 6, generator=seeded(1))
    q = three(clipped=clipped)
    w = UniformQuantizer(4, granularity='channel', role='weight')
    w.set_range(weight.amin(1), weight.amax(1))
    want = product_of_integers(x, weight, q, w)
    got = q(x).double() @ w(weight).double().t()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_one_group_is_a_range_for_the_tensor():
    x = tokens()
    q = InstanceGroupQuantizer(4, num_groups=1, axis=-1)
    plain = UniformQuantizer(4)
    for one in (q, plain):
        one.set_range(torch.tensor([-1.0]), torch.tensor([1.5]))
    assert torch.equal(q(x), plain(x))


def test_a_group_for_each_channel_is_a_range_for_each_in_any_order():
    """Groups are of the tensor: channels that swap take their grids along."""
    x = tokens()
    plain = UniformQuantizer(4, granularity='channel', axis=-1)
    flat = x.reshape(-1, 6)
    plain.set_range(flat.amin(0), flat.amax(0))
    q = InstanceGroupQuantizer(4, num_groups=6, axis=-1)
    q.set_range(flat.amin(0), flat.amax(0))
    assert q.groups_of(x).tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(q(x), plain(x))
    order = [4, 2, 0, 1, 5, 3]
    assert q.groups_of(x[..., order]).tolist() == order
    assert torch.equal(q(x[..., order]), plain(x)[..., order])


def test_another_number_of_groups():
    x = tokens()
    q = InstanceGroupQuantizer(4, num_groups=3, axis=-1)
    q.set_range(torch.zeros(3), torch.arange(1, 4).float())
    q.regroup(2)
    assert q.num_groups == 2 and not q.initialized
    with pytest.raises(CalibrationError):
        q(x)
    low, high = torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 2.0])
    q.set_range(low, high)
    fresh = InstanceGroupQuantizer(4, num_groups=2, axis=-1)
    fresh.set_range(low, high)
    assert torch.equal(q(x), fresh(x))
    mine, other = q.state_dict(), fresh.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(t, other[n]) for n, t in mine.items())
    with pytest.raises(ValueError, match='num_groups'):
        q.regroup(0)


def test_images_choose_for_themselves():
    q = InstanceGroupQuantizer(8, num_groups=2)
    q.set_range(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 8.0]))
    small, large = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4) * 8
    assert q.groups_of(small).tolist() == [0, 0, 0]
    assert q.groups_of(large).tolist() == [1, 1, 1]
    assert (q(small) - small).abs().max() <= 1 / 255 / 2 * 1.001


def test_the_second_time_can_be_another_group():
    """The top of the first grid is nearer to the second than to itself."""
    q = InstanceGroupQuantizer(2, num_groups=2, axis=-1, clipped=None)
    q.set_range(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 9.0]))
    x = torch.tensor([[0.0], [6.1]])
    once = q(x)
    assert q.groups_of(x).tolist() == [1] and once.tolist() == [[0], [6]]
    # as far from both: the first
    assert q.groups_of(once).tolist() == [0]
    assert q(once).tolist() == [[0], [3]]


def test_more_bits_leave_more_room():
    """What they round less by is worth more than what they clip."""
    x = torch.tensor([[0.0], [4.0]])
    found = []
    for bits in (2, 3, 4, 8):
        q = InstanceGroupQuantizer(bits, 2, axis=-1, clipped=0.05)
        q.set_range(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 9.0]))
        # 72 more of squared width, against 1 that is clipped
        rounded = 72 / (12 * (2**bits - 1) ** 2)
        assert q.groups_of(x).tolist() == [int(rounded < 0.05)]
        found.append(q.groups_of(x).item())
    assert found == [0, 0, 1, 1]


@pytest.mark.parametrize('clipped', [None, 0.5])
def test_rows_of_a_softmax_by_their_maxima(clipped):
    heat = torch.tensor([0.1, 2.0, 8.0])[:, None, None]
    p = (heat * torch.randn(2, 3, 4, 9, generator=seeded(2))).softmax(-1)
    q = InstanceGroupQuantizer(4, 3, 'row', clipped=clipped)
    tops = torch.tensor([0.3, 0.6, 1.0])
    q.set_range(torch.zeros(3), tops)
    over = p.amax(-1)[..., None] - tops
    cost = over.abs()
    if clipped:
        cost = tops**2 / (12 * 15**2) + clipped * over.clamp(min=0) ** 2
    group = cost.argmin(-1)
    assert group.unique().numel() == 3
    assert torch.equal(q.groups_of(p), group.reshape(-1))
    step = tops[group][..., None] / 15
    want = (p / step).round().clamp(0, 15) * step
    torch.testing.assert_close(q(p), want, rtol=1e-6, atol=0)
    # nothing of a row depends on other images
    with forward_context(2):
        assert torch.equal(q(p)[1:], q(p[1:]))


def test_gradients_stop_where_it_clips():
    x = torch.tensor([[0.2], [2.6]], requires_grad=True)
    q = InstanceGroupQuantizer(4, num_groups=2, axis=-1)
    q.set_range(torch.zeros(2), torch.tensor([1.0, 2.0]))
    q(x).sum().backward()
    assert x.grad.tolist() == [[1], [0]]


def test_several_images_are_refused():
    q = three()
    with forward_context(2), pytest.raises(PTQError, match='here are 2'):
        q(tokens())
    with forward_context(1):
        assert torch.equal(q(tokens()), three()(tokens()))


def test_storage():
    q = three()
    # codes, two bits for the group of each channel, ends of three groups
    assert q.storage_bits((5, 7, 6)) == 210 * 4 + 6 * 2 + 3 * 64


def test_what_is_refused():
    with pytest.raises(ValueError, match='a weight is the same'):
        InstanceGroupQuantizer(role='weight')
    with pytest.raises(ValueError, match='num_groups'):
        InstanceGroupQuantizer(num_groups=0)
    with pytest.raises(ValueError, match='clipped must be a number above 0'):
        InstanceGroupQuantizer(clipped=0)
    with pytest.raises(ValueError, match='granularity'):
        InstanceGroupQuantizer(granularity='tensor')
    with pytest.raises(ValueError, match="'row' is for an Instance"):
        UniformQuantizer(granularity='row')
    q = InstanceGroupQuantizer(num_groups=8, axis=-1)
    with pytest.raises(ValueError, match='8 is more than the 6 channels'):
        q.check_shape((5, 7, 6))
    with pytest.raises(ValueError, match='3 ranges for num_groups=8; give'):
        q.set_range(LOW, HIGH)
    with pytest.raises(CalibrationError, match='depends on the tensor'):
        three().encoding()
