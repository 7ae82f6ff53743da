# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Means of inputs."""

import torch
from seeded import seeded
from torch import nn

from mmdet_ptq.calibration.moments import ChannelMeans, mean_output
from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import UniformQuantizer


def test_mean_output_is_what_a_constant_image_gives():
    torch.manual_seed(0)
    mean = torch.randn(8).double()
    for layer in (
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.Conv2d(8, 16, 3, groups=8),
    ):
        layer = layer.double()
        image = mean[None, :, None, None].expand(1, 8, 5, 5)
        expected = layer(image)[0, :, 1, 1] - layer.bias
        torch.testing.assert_close(
            mean_output(layer, layer.weight, mean), expected
        )
    linear = nn.Linear(8, 3, bias=False).double()
    torch.testing.assert_close(
        mean_output(linear, linear.weight, mean), linear(mean)
    )


def test_means_count_positions_and_forget_no_order():
    """Sums of whole numbers: the same bits whatever comes first."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1))
    convert(model)
    layer = model[0]
    layer.attach(UniformQuantizer(4, role='weight'))
    generator = seeded(0)
    images = [
        10.0 ** (i % 5) * torch.randn(1, 2, 3, 4 + i, generator=generator)
        for i in range(12)
    ]

    def means(*shares):
        found = ChannelMeans(dict(conv=layer))
        for share in shares:
            part = ChannelMeans(dict(conv=layer))
            for x in share:
                part.observe('conv', x)
            found.add(part.state_dict())
        return found

    whole = means(images)
    assert whole.counts == dict(conv=sum(3 * (4 + i) for i in range(12)))
    rows = torch.cat([x.double().flatten(2) for x in images], 2)
    mean = whole.sums['conv'].double() / 2**20 / whole.counts['conv']
    expected = rows.mean((0, 2)).cpu()
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-3)
    other = means(images[7:][::-1], images[:3], images[3:7])
    assert torch.equal(other.sums['conv'], whole.sums['conv'])
    assert other.counts == whole.counts


def test_a_mean_is_moved():
    """As if every row had come with the numbers added."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3))
    convert(model)
    for layer in model:
        layer.attach(UniformQuantizer(4, role='weight'))
    x, by = torch.randn(50, 2), torch.tensor([0.25, -3.0])
    one, other = (ChannelMeans({'0': model[0]}) for _ in range(2))
    one.observe('0', x)
    one.shift('0', by)
    one.shift('1', by)  # which has no mean
    other.observe('0', x + by)
    found, wanted = one.state_dict(), other.state_dict()
    assert found['counts'] == wanted['counts'] == {'0': 50}
    torch.testing.assert_close(
        found['sums']['0'].double(),
        wanted['sums']['0'].double(),
        rtol=1e-6,
        atol=0,
    )
