# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""No pyramid level gets the range of another in silence."""

import copy
import warnings

import pytest
import torch
from torch import nn

from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import UniformQuantizer

SIZES = (8, 4, 2)


class Head(nn.Module):
    """Two layers for each of three levels of very different size."""

    def __init__(self):
        super().__init__()
        self.cls, self.reg = (nn.Conv2d(4, 2, 1) for _ in range(2))
        self.broken = False

    def forward(self, maps):
        found = []
        for x in maps:
            found.append(self.cls(x))
            if self.broken:
                raise RuntimeError('in the middle')
            found.append(self.reg(x))
        return found


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1))
        self.bbox_head = Head()

    def maps(self, inputs):
        x = self.backbone(inputs)
        return [10**i * x[..., :s, :s] for i, s in enumerate(SIZES)]

    def forward(self, inputs):
        return self.bbox_head(self.maps(inputs))

    def predict(self, inputs):
        return self.bbox_head(self.maps(inputs))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Detector()
    convert(model)
    top = 10.0 ** torch.arange(3).reshape(3, 1)
    for layer in (model.bbox_head.cls, model.bbox_head.reg):
        act = UniformQuantizer(4, per_level=True)
        act.set_range(-top, top)
        layer.attach(acts=dict(input=act), levels=3, by_head=True)
    return model.eval()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@torch.no_grad()
def test_the_call_of_the_head_begins_anew(model):
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    assert same(model.predict(x), expected)
    for broken in (model, model.bbox_head):
        model.bbox_head.broken = True
        with pytest.raises(RuntimeError):
            broken(x if broken is model else model.maps(x))
        model.bbox_head.broken = False
        # and of the one that was broken off nothing is known any more
        with pytest.raises(PTQError, match=r'cls: .* 3 pyramid levels'):
            model.bbox_head.cls(torch.zeros(1, 4, 2, 2))
        # neither the call of a method nor that of the head is shifted
        assert same(model.predict(x), expected)
        assert same(model.bbox_head(model.maps(x)), expected)
    other = copy.deepcopy(model)
    assert same(other.predict(x), expected)


@torch.no_grad()
def test_outside_of_the_head_no_level_is_known(model):
    maps = model.maps(torch.randn(1, 3, 8, 8))
    for run in (
        lambda: model.bbox_head.forward(maps),
        lambda: model.bbox_head.cls(maps[2]),
    ):
        with pytest.raises(PTQError, match=r'bbox_head\.cls: .* 3 pyramid'):
            run()


@torch.no_grad()
def test_a_head_that_runs_twice_in_a_forward(model):
    """CondInst's raw forward."""
    maps = model.maps(torch.randn(1, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        first, again = (model.bbox_head(maps) for _ in range(2))
    assert same(first, again)


@torch.no_grad()
def test_part_of_the_levels_is_told(model):
    maps = model.maps(torch.randn(1, 3, 8, 8))
    with pytest.warns(UserWarning, match=r'^bbox_head\.cls \(and 1 more'):
        model.bbox_head(maps[1:])
    for layer in (model.bbox_head.cls, model.bbox_head.reg):
        layer.switch(weight=True, act=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.bbox_head(maps[1:])


@torch.no_grad()
def test_after_its_call_no_level_of_a_head_is_known(model):
    maps = model.maps(torch.randn(1, 3, 8, 8))
    model.bbox_head(maps)
    with pytest.raises(PTQError, match=r'cls: .* 3 pyramid levels'):
        model.bbox_head.cls(maps[2])


@torch.no_grad()
def test_layers_of_one_range_may_be_called_as_often_as_they_like(model):
    maps = model.maps(torch.randn(1, 3, 8, 8))
    act = UniformQuantizer(4)
    act.set_range(-torch.ones(1), torch.ones(1))
    layer = model.bbox_head.reg
    layer.attach(acts=dict(input=act), levels=3, by_head=True)
    with pytest.warns(UserWarning, match=r'^bbox_head\.cls: it was not'):
        model.bbox_head(maps[1:])


class ByLevel(Detector):
    """Each level is a call of the head; one more layer is its own child."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(4, 2, 1)
        self.count = 3

    def forward(self, inputs):
        maps = self.maps(inputs)[: self.count]
        return [[*self.bbox_head([x]), self.last(x)] for x in maps]


@torch.no_grad()
def test_levels_that_the_detector_makes(model):
    """They are counted over calls of the head, and looked at in the end."""
    torch.manual_seed(0)
    model = ByLevel()
    convert(model)
    top = 10.0 ** torch.arange(3).reshape(3, 1)
    layers = (model.bbox_head.cls, model.bbox_head.reg, model.last)
    for layer in layers:
        act = UniformQuantizer(4, per_level=True)
        act.set_range(-top, top)
        layer.attach(acts=dict(input=act), levels=3)
    x = torch.randn(1, 3, 8, 8)
    by_hand = [
        [nn.functional.conv2d(act(m, i), n.weight, n.bias) for n in layers]
        for i, m in enumerate(model.maps(x))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = [model(x) for _ in range(2)]
    assert all(
        same(a, b) for one in found for a, b in zip(one, by_hand, strict=True)
    )
    model.count = 2
    with pytest.warns(UserWarning, match=r'^bbox_head\.cls \(and 2 more'):
        model(x)


class Levels(Detector):
    """As an exporter gets it: no call of the quantized model itself."""

    def __init__(self, model):
        nn.Module.__init__(self)
        self.model = model

    def forward(self, inputs):
        return self.model.predict(inputs)


def test_a_traced_head_at_another_size(model):
    traced = torch.jit.trace(
        Levels(model), torch.randn(1, 3, 8, 8), check_trace=False
    )
    for size in (8, 12):
        x = torch.randn(1, 3, size, size)
        assert same(traced(x), model.predict(x))


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('grad', [False, True])
def test_an_exported_head_runs_with_and_without_gradients(model, strict, grad):
    x = torch.randn(1, 3, 8, 8)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(Levels(model), (x,), strict=strict)
    expected = model.predict(x)
    with torch.no_grad():
        assert same(program.module()(x), expected)
    assert same(program.module()(x), expected)
