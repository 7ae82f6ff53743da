# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Each forward knows its own pyramid levels and its number of images."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from mmdet_ptq.context import current, follow, forward_context, images
from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import convert, float_mode
from mmdet_ptq.quantizers import UniformQuantizer

SIZES = (8, 4, 2)


class Pyramid(nn.Module):
    """A head that is called on three levels of very different size."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, inputs, mode='tensor'):
        x = self.backbone(inputs)
        levels = [10**i * x[..., :s, :s] for i, s in enumerate(SIZES)]
        return [self.head(level) for level in levels]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Pyramid()
    convert(model)
    act = UniformQuantizer(4, per_level=True)
    top = 10.0 ** torch.arange(3).reshape(3, 1)
    act.set_range(-top, top)
    weight = UniformQuantizer(4, granularity='channel', role='weight')
    weight.set_range(-torch.ones(2), torch.ones(2))
    model.head.attach(weight, dict(input=act), levels=3)
    return model.eval()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@torch.no_grad()
def test_threads_share_a_model(model):
    """Four forwards, each at another level whenever the head is called."""
    inputs = [torch.randn(1, 3, 8, 8) for _ in range(4)]
    expected = [model(x) for x in inputs]
    barrier = Barrier(4, timeout=20)

    def wait(*_):
        barrier.wait()

    hook = model.head.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(torch.no_grad()(model), inputs))
        again = list(pool.map(torch.no_grad()(model), inputs))
    hook.remove()
    for a, b, c in zip(found, again, expected, strict=True):
        assert same(a, c) and same(b, c)
    # the levels do differ
    assert not same(expected[0], expected[1])


@torch.no_grad()
def test_an_exception_shifts_no_levels(model):
    x = torch.randn(1, 3, 8, 8)
    expected, outside = model(x), current()

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    for module, hooks in (
        (model.head, model.head.register_forward_hook),
        (model, model.register_forward_pre_hook),
    ):
        hook = hooks(stop)
        with pytest.raises(Stop):
            model(x)
        hook.remove()
        assert current() is outside, module
        assert same(model(x), expected)
    # a hook that comes before the forward is entered
    hook = model.register_forward_pre_hook(stop, prepend=True)
    with forward_context() as inside:
        with pytest.raises(Stop):
            model(x)
        assert current() is inside
    hook.remove()
    assert current() is outside and same(model(x), expected)


@torch.no_grad()
def test_layers_of_a_model_called_directly(model):
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(PTQError, match=r'^head: it has ranges for 3 pyramid'):
        model.head(x)
    with forward_context():
        inner = [model.head(x) for _ in range(4)]
    # a forward starts at the first level, goes round and leaves no trace
    assert not torch.equal(inner[0], inner[1])
    assert torch.equal(inner[3], inner[0])
    with pytest.raises(PTQError), float_mode(model, weight=False, act=False):
        model.head(x)
    # a float input has no range to be wrong
    with float_mode(model, weight=False):
        model.head(x)


def test_levels_of_a_context():
    layer = nn.Identity()
    with forward_context() as forward:
        taken = [forward.take_level(layer, 3) for _ in range(4)]
        assert taken == [0, 1, 2, 0]
        assert forward.next_level(layer, 3) == 1
        assert forward.last_level(layer, 3) == 0
        forward.set_level(layer, 2)
        assert forward.next_level(layer, 3) == 2
        assert forward.last_level(layer, 3) == 1
        assert forward.take_level(nn.Identity(), 3) == 0
        # one call is one level, whatever was counted
        assert forward.take_level(layer, 1) == forward.next_level(layer, 1)
        assert forward.last_level(layer, 1) == 0


class Looking(nn.Module):
    def forward(self, inputs=None, mode=None):
        return images()


def test_what_a_context_knows():
    layer = nn.Identity()
    base = current()
    assert not base.knows(layer)
    base.take_level(layer, 3)
    base.begin(layer)
    assert base.knows(layer) and base.take_level(layer, 3) == 0
    assert not base.is_round(layer, 3) and base.is_round(layer, 1)
    base.end(layer)
    assert not base.knows(layer)
    with forward_context() as forward:
        assert forward.knows(layer) and forward.is_round(layer, 3)
        for _ in range(3):
            forward.take_level(layer, 3)
        assert forward.is_round(layer, 3)


def test_number_of_images():
    model = Looking()
    convert(model)
    assert images() is None
    assert model(torch.zeros(3, 1)) == 3
    assert model([torch.zeros(1), torch.zeros(2)]) == 2
    assert model(mode='predict', inputs=torch.zeros(5, 1)) == 5
    assert model(inputs={'a': 1}) is None
    assert model(torch.tensor(1.0)) is None
    with forward_context(7):
        assert images() == 7
        assert model(torch.zeros(3, 1)) == 3
        with forward_context():
            assert images() is None
        assert images() == 7
    assert images() is None


@torch.no_grad()
def test_copies_of_a_model(model):
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(other(x), expected)
        # nor does it share the levels of the original
        with forward_context():
            first = model.head(x[:, [0, 1, 2, 0]])
            assert torch.equal(other.head(x[:, [0, 1, 2, 0]]), first)


@torch.no_grad()
def test_models_are_not_kept_alive(model):
    part = copy.deepcopy(model)
    part(torch.randn(1, 3, 8, 8))
    gone = [weakref.ref(part), weakref.ref(part.head)]
    del part
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_a_forward_that_was_interrupted_is_forgotten():
    """Hooks do not hear of a KeyboardInterrupt."""

    class Stopping(nn.Module):
        def forward(self, inputs):
            if inputs.shape[0] == 5:
                raise KeyboardInterrupt
            return images()

    model = Stopping()
    follow(model)
    with pytest.raises(KeyboardInterrupt):
        model(torch.ones(5, 3))
    assert model(torch.ones(2, 3)) == 2
    assert images() is None
