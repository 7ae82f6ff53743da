# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Samples of inputs, and of gradients at the same places."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmdet_ptq.calibration import Batches, Images, weight_matrix
from mmdet_ptq.detectors import adapter_for
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.layers.matmul import MatMul
from mmdet_ptq.passes.search_scales.gather import Samples
from mmdet_ptq.quant_cfg import parse_quant_cfg

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


class Net(BaseModel):
    """A head on maps of three sizes, and a product of what it gives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2, bias=False)
        self.flat = nn.Linear(4, 5, bias=False)
        self.product = MatMul()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs))
        maps = [self.head(x), self.head(x[..., 1:] * 2), self.head(x[..., 3:])]
        y = self.flat(self.up(maps[0]).flatten(2).mT).unflatten(1, (2, -1))
        return *maps, self.product(y[:, :, :9], y[:, :, :7].mT)


class Cubes:
    """A loss whose slope at an output y is y * y."""

    def targets(self, outputs):
        return []

    def __call__(self, outputs, targets):
        return sum(y.pow(3).sum() / 3 for y in outputs)


@pytest.fixture
def taken(tmp_path):
    model = Net().eval()
    passes = [dict(type='Observe'), dict(type='SetRanges')]
    rules = [dict(match='*', weight={}, act={})]
    config = parse_quant_cfg(dict(bits='w8a8', rules=rules, passes=passes))
    rng = torch.Generator().manual_seed(0)
    data = [
        dict(
            inputs=[torch.randn(4, 8, wide, generator=rng)],
            data_samples=[None],
        )
        for wide in (10, 12, 10)
    ]
    session = prepare(model, config, data[0], Batches(model, data))
    for layer in session.layers.values():
        layer.switch(False, False)
    with session.cache() as cache:
        adapter = adapter_for(model, session.graph, True)
        images = Images(session, cache, adapter, [Cubes()])
        samples = Samples(session, images, list(session.layers), 36)
        samples.take()
        samples.take_slopes(Cubes())
        yield session, samples


def test_as_many_of_each_image_and_level(taken):
    _, samples = taken
    found = samples.of('head')
    assert [one.level for one in found] == [0, 1, 2]
    for one in found:  # 36 rows, 3 images, 3 levels
        assert one.image.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert one.inputs[0].shape == (2, 12, 18)
        assert one.positions == 12
    (flat,) = samples.of('flat')
    assert flat.positions == 36


def test_slopes_are_those_of_the_positions(taken):
    """y * y at the very outputs that the sampled rows give."""
    session, samples = taken
    layer = session.layers['head']
    for one in samples.of('head'):
        y = one.inputs[0] @ weight_matrix(layer, layer.weight).mT
        # the first map is read by more than the loss
        if one.level:
            torch.testing.assert_close(one.slopes, y.detach().square())
    (product,) = samples.of('product')
    a, b = product.inputs
    assert a.shape == (3, 2, 9, 5) and b.shape == (3, 2, 5, 7)
    torch.testing.assert_close(product.slopes, (a @ b).square())


def test_slopes_of_what_nothing_reads(taken):
    session, samples = taken
    samples._slopes = {j: {} for j in samples._slopes}
    for name in session.layers:
        assert not any(one.slopes.any() for one in samples.of(name))
