# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Extremes of each image, and what becomes of them."""

import itertools

import pytest
import torch
from observer_kit import feed
from seeded import seeded

from mmdet_ptq.context import forward_context
from mmdet_ptq.errors import CalibrationError
from mmdet_ptq.observers import InstanceObserver, fit_groups
from mmdet_ptq.quantizers import InstanceGroupQuantizer, UniformQuantizer


def new(kind='channel', groups=3):
    q = InstanceGroupQuantizer(4, num_groups=groups, granularity=kind)
    observer = InstanceObserver()
    observer.bind(q.granularity, 1, torch.get_default_device())
    return observer, q


def images(count=4):
    """Maps of several sizes and widths."""
    return [
        torch.randn(1, 5, 4, 3 + i, generator=seeded(i)) * (i + 1)
        for i in range(count)
    ]


def test_extremes_are_those_of_an_image_and_not_of_all():
    observer, q = new()
    batch = images()
    low, high = feed(observer, batch).ranges(q)
    points = [
        torch.stack([x[0].amin((1, 2)), x[0].amax((1, 2))], 1) for x in batch
    ]
    want = fit_groups(torch.cat(points), 3, room=q.room).float()
    assert torch.equal(torch.stack([low[0], high[0]], 1), want)
    q.set_range(low, high)
    assert q.num_rows() == 3
    q.clipped = None
    want = fit_groups(torch.cat(points), 3).float()
    assert torch.equal(torch.stack([*observer.ranges(q)], -1)[0], want)


def test_calls_of_one_image_are_one():
    """Two layers that share the quantizer, or a layer called twice."""
    observer, q = new()
    first, second = images(2)
    observer.observe(first)
    observer.observe(second)
    observer.end_image()
    both = torch.cat([first.flatten(2), second.flatten(2)], 2)
    want = feed(new()[0], [both]).ranges(q)
    got = observer.ranges(q)
    assert all(map(torch.equal, got, want))


def softmaxes(count=4):
    """Attentions of several lengths, so of several numbers of rows."""
    return [
        torch.softmax(torch.randn(1, 2, 4 + i, 6, generator=seeded(i)), -1)
        for i in range(count)
    ]


def test_rows_by_their_maxima():
    observer, q = new('row')
    batch = softmaxes()
    low, high = feed(observer, batch).ranges(q)
    assert low.tolist() == [[0, 0, 0]]
    tops = torch.cat([p.amax(-1).reshape(-1) for p in batch])
    points = torch.stack([tops * 0, tops], 1)
    want = fit_groups(points, 3, room=q.room)[:, 1].float()
    assert torch.equal(high[0], want)


def test_many_rows_are_thinned_and_keep_their_extremes():
    p = torch.rand(1, 1, 5000, 2, generator=seeded(0))
    observer, q = new('row', 1)
    low, high = feed(observer, [p]).ranges(q)
    assert 0.9 < high.item() < p.max() and low.item() == 0
    points = observer.state_dict()['points']
    tops = p.amax(-1)
    assert points.shape == (1024, 2)
    assert points[:, 1].max() == tops.max()
    assert points[:, 1].min() == tops.min()


def test_rows_are_thinned_by_their_widths():
    """The widest stays, though its maximum is like that of others."""
    x = torch.rand(1, 1, 5000, 2, generator=seeded(0)) - 0.5
    x[0, 0, 77, 0] = -9
    x[0, 0, 77, 1] = 0.1
    observer, _ = new('row', 1)
    points = feed(observer, [x]).state_dict()['points']
    assert points.shape == (1024, 2)
    assert points[-1].tolist() == pytest.approx([-9, 0.1])


@pytest.mark.parametrize(
    ('kind', 'make'), [('channel', images), ('row', softmaxes)]
)
def test_ranks_and_order_do_not_matter(kind, make):
    batch = make(4)
    single, q = new(kind)
    want = feed(single, batch).ranges(q)
    for order in itertools.permutations([batch[:1], batch[1:], []]):
        ranks = [feed(new(kind)[0], part) for part in order]
        ranks[0].merge([r.state_dict() for r in ranks[1:]])
        assert all(map(torch.equal, ranks[0].ranges(q), want))
    again = new(kind)[0]
    again.load_state_dict(feed(new(kind)[0], batch[:2]).state_dict())
    assert all(map(torch.equal, feed(again, batch[2:]).ranges(q), want))


def test_what_is_refused():
    observer, _ = new()
    with forward_context(2), pytest.raises(CalibrationError, match='one im'):
        observer.observe(images(1)[0])
    assert 'another observer' in observer.why_not(UniformQuantizer())
    assert observer.why_not(InstanceGroupQuantizer()) == ''
    with pytest.raises(ValueError, match='period'):
        InstanceObserver(period=0)
