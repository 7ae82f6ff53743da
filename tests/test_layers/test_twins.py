# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Twins: same output in float mode, hand-quantized output otherwise."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from mmcv.cnn.bricks import wrappers
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
)
from torch import nn

from mmdet_ptq.layers import MatMul, QuantLayer, convert, float_mode
from mmdet_ptq.quantizers import UniformQuantizer


def conv_inputs(channels=8):
    return (torch.randn(2, channels, 9, 11),)


def deform_inputs(mask):
    x = torch.randn(1, 8, 9, 11)
    extra = (torch.randn(1, 18, 9, 11),)
    return (x, *extra, torch.rand(1, 9, 9, 11)) if mask else (x, *extra)


LAYERS = {
    'conv': (nn.Conv2d(8, 6, 3, padding=1), conv_inputs()),
    'conv_dilated': (nn.Conv2d(8, 6, 3, 2, 2, 2, bias=False), conv_inputs()),
    'conv_grouped': (nn.Conv2d(8, 4, 3, groups=2), conv_inputs()),
    'conv_depthwise': (nn.Conv2d(8, 16, 3, groups=8), conv_inputs()),
    'conv_reflect': (
        nn.Conv2d(8, 6, 3, padding=1, padding_mode='reflect'),
        conv_inputs(),
    ),
    'conv_mmcv': (wrappers.Conv2d(8, 6, 1), conv_inputs()),
    'deconv': (nn.ConvTranspose2d(8, 6, 2, 2), conv_inputs()),
    'deconv_grouped': (nn.ConvTranspose2d(8, 6, 3, groups=2), conv_inputs()),
    'deconv_mmcv': (wrappers.ConvTranspose2d(8, 6, 2), conv_inputs()),
    'linear': (nn.Linear(8, 5), (torch.randn(3, 7, 8),)),
    'linear_mmcv': (wrappers.Linear(8, 5), (torch.randn(3, 8),)),
    'deform': (DeformConv2d(8, 4, 3, padding=1), deform_inputs(False)),
    'deform_v2': (
        ModulatedDeformConv2d(8, 4, 3, padding=1),
        deform_inputs(True),
    ),
    'deform_pack': (DeformConv2dPack(8, 4, 3, padding=1), conv_inputs()),
    'deform_v2_pack': (
        ModulatedDeformConv2dPack(8, 4, 3, padding=1),
        conv_inputs(),
    ),
}


def twin_of(layer):
    model = nn.ModuleDict(dict(layer=copy.deepcopy(layer)))
    convert(model)
    return model['layer']


def quantizer(role, x, axis, bits=4, granularity='tensor'):
    q = UniformQuantizer(bits, granularity=granularity, axis=axis, role=role)
    rows = q.granularity.rows(x)
    q.set_range(rows.amin(1), rows.amax(1))
    return q


def attach(twin, x):
    twin.attach(
        quantizer(
            'weight', twin.weight, twin.weight_axis, granularity='channel'
        ),
        dict(input=quantizer('act', x, twin.act_axis)),
    )


@pytest.mark.parametrize('name', LAYERS)
def test_float_twin_is_exact(name):
    layer, inputs = LAYERS[name]
    twin = twin_of(layer)
    assert isinstance(twin, QuantLayer) and isinstance(twin, type(layer))
    assert list(twin.state_dict()) == list(layer.state_dict())
    expected = layer(*inputs)
    assert torch.equal(twin(*inputs), expected)
    attach(twin, inputs[0])
    assert not torch.equal(twin(*inputs), expected)
    with float_mode(twin):
        assert torch.equal(twin(*inputs), expected)
    assert not torch.equal(twin(*inputs), expected)


@pytest.mark.parametrize('name', LAYERS)
def test_quantized_twin_is_layer_on_quantized_operands(name):
    """Both operands quantized by hand, given to the float layer."""
    layer, inputs = LAYERS[name]
    twin = twin_of(layer)
    attach(twin, inputs[0])
    by_hand = copy.deepcopy(layer)
    by_hand.weight.data = twin.weight_quantizer(layer.weight.data)
    x = twin.act_quantizers['input'](inputs[0])
    if name.endswith('_pack'):
        # offsets come from the float input
        offsets = layer.conv_offset(inputs[0])
        by_hand.conv_offset = nn.Identity()
        by_hand.conv_offset.forward = lambda _: offsets
    expected = by_hand(x, *inputs[1:])
    assert torch.equal(twin(*inputs), expected)
    twin.bake()
    assert torch.equal(twin(*inputs), expected)
    with pytest.raises(RuntimeError, match='baked'), float_mode(twin):
        pass
    assert torch.equal(twin(*inputs), expected)


def test_matmul_quantizes_both_operands():
    a, b = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 6)
    twin = twin_of(MatMul())
    assert torch.equal(twin(a, b), a @ b)
    twin.set_quantizer('a', quantizer('act', a, -1))
    twin.set_quantizer('b', quantizer('act', b, -1, bits=8))
    qa, qb = twin.act_quantizers['a'](a), twin.act_quantizers['b'](b)
    assert torch.equal(twin(a, b), qa @ qb)
    assert not torch.equal(qa, a)


def test_shared_module_stays_one_object():
    conv = nn.Conv2d(3, 3, 1)
    model = nn.ModuleList([conv, nn.Sequential(conv)])
    convert(model)
    assert model[0] is model[1][0] is conv
    assert type(conv).__name__ == 'QuantConv2d'


def test_unknown_subclass_is_left_alone():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.ModuleList([Scaled(3, 3, 1), nn.Conv2d(3, 3, 1)])
    convert(model)
    assert type(model[0]) is Scaled
    assert isinstance(model[1], QuantLayer)


def test_weights_only_and_activations_only():
    layer, inputs = LAYERS['conv']
    twin = twin_of(layer)
    attach(twin, inputs[0])
    qx = twin.act_quantizers['input'](inputs[0])
    with float_mode(twin, weight=True, act=False):
        assert torch.equal(twin(*inputs), layer(qx))
    by_hand = copy.deepcopy(layer)
    by_hand.weight.data = twin.weight_quantizer(layer.weight.data)
    with float_mode(twin, weight=False, act=True):
        assert torch.equal(twin(*inputs), by_hand(*inputs))


class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, xs):
        return [self.conv(x) for x in xs]


def test_pyramid_levels_follow_the_calls():
    model = Levels()
    convert(model)
    model.conv.attach(levels=3)
    levels = []
    xs = [torch.randn(1, 4, s, s) for s in (4, 2, 1)]
    with model.conv.listening(lambda port, level, x: levels.append(level)):
        model(xs)
        model(xs[:2])
        model(xs)
        # a forward that stops early does not shift the next one
        assert levels == [0, 1, 2, 0, 1, 0, 1, 2]
        # and layers called by themselves go round
        for x in (*xs, xs[0]):
            model.conv(x)
    assert levels[8:] == [0, 1, 2, 0]


def test_gradient_reaches_weight_through_quantizer():
    layer, inputs = LAYERS['conv']
    twin = twin_of(layer)
    attach(twin, inputs[0])
    twin(*inputs).sum().backward()
    assert twin.weight.grad is not None and twin.weight.grad.abs().sum() > 0
    assert 'weight' not in twin.__dict__


def test_offset_branch_of_a_pack_is_a_layer_of_its_own():
    layer, inputs = LAYERS['deform_v2_pack']
    twin = twin_of(layer)
    assert isinstance(twin.conv_offset, QuantLayer)
    expected = twin(*inputs)
    attach(twin.conv_offset, inputs[0])
    nn.init.normal_(twin.conv_offset.weight)
    quantized = twin(*inputs)
    assert not torch.equal(quantized, expected)
    with float_mode(twin):
        assert not torch.equal(twin(*inputs), quantized)


def test_bias_shift_is_of_the_quantized_weight_only():
    layer = nn.Linear(3, 2)
    twin = twin_of(layer)
    twin.attach(UniformQuantizer(4, role='weight'))
    twin.weight_quantizer.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    x = torch.randn(4, 3)
    plain = twin(x)
    twin.shift_bias(torch.tensor([0.5, -2.0]))
    torch.testing.assert_close(twin(x), plain + twin.bias_shift)
    with float_mode(twin):
        assert torch.equal(twin(x), layer(x))
    shifted = twin(x)
    twin.bake()
    assert twin.bias_shift is None and torch.equal(twin(x), shifted)


def test_rounded_weight_is_used_and_baked():
    layer, inputs = LAYERS['linear']
    twin = twin_of(layer)
    attach(twin, inputs[0])
    nearest, rounded = twin(*inputs), twin.weight_quantizer(-layer.weight)
    twin.fix_weight(rounded.detach())
    found = twin(*inputs)
    x = twin.act_quantizers['input'](inputs[0])
    assert torch.equal(found, nn.functional.linear(x, rounded, layer.bias))
    assert not torch.equal(found, nearest)
    with float_mode(twin):
        assert torch.equal(twin(*inputs), layer(*inputs))
    twin.bake()
    assert twin.rounded is None and torch.equal(twin.weight, rounded)
    assert torch.equal(twin(*inputs), found)
    # from now on it is taken as it is
    twin.weight.data.mul_(0.7)
    expected = nn.functional.linear(x, 0.7 * rounded, layer.bias)
    assert torch.equal(twin(*inputs), expected)


@torch.no_grad()
def test_threads_share_a_pack():
    """Both forwards are within the layer at the same time."""
    layer, _ = LAYERS['deform_v2_pack']
    twin = twin_of(layer)
    nn.init.normal_(twin.conv_offset.weight)
    inputs = [torch.randn(1, 8, 9, 11) for _ in range(2)]
    attach(twin, inputs[0])
    expected = [twin(x) for x in inputs]
    barrier = Barrier(2, timeout=20)
    with twin.listening(lambda *_: barrier.wait()), ThreadPoolExecutor() as p:
        found = list(p.map(torch.no_grad()(twin), inputs))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_what_a_twin_is_given():
    layer, inputs = LAYERS['linear']
    twin = twin_of(layer)
    attach(twin, inputs[0])
    twin.fix_weight(-layer.weight.detach())
    twin.shift_bias(torch.ones(5))
    act = twin.act_quantizers['input']
    # other values of the weight: what was learned for it goes
    other = quantizer('weight', twin.weight, 0, bits=2)
    twin.set_quantizer('weight', other)
    assert twin.rounded is None and twin.bias_shift is None
    assert twin.weight_quantizer is other
    assert twin.act_quantizers['input'] is act
    twin.leave_float('input')
    twin.leave_float('input')
    assert torch.equal(
        twin(*inputs),
        nn.functional.linear(*inputs, other(layer.weight), layer.bias),
    )
    twin.set_quantizer('weight', None)
    assert torch.equal(twin(*inputs), layer(*inputs))
    with pytest.raises(ValueError, match=r"'inputs'.*mean 'input'.*weight"):
        twin.leave_float('inputs')
    with pytest.raises(ValueError, match=r"'weight'.*Allowed: a, b\."):
        twin_of(MatMul()).attach(weight=other)
    # an attached twin starts anew
    attach(twin, inputs[0])
    twin.attach(other, levels=2)
    assert not twin.act_quantizers and twin.levels == 2


def test_a_weight_that_is_learned():
    layer, inputs = LAYERS['linear']
    twin = twin_of(layer)
    attach(twin, inputs[0])
    nearest = twin(*inputs)
    saved = twin.snapshot()
    source = nn.Parameter(torch.randn(5, 8))
    twin.learn_weight(lambda: 2 * source)
    x = twin.act_quantizers['input'](inputs[0])
    expected = nn.functional.linear(x, 2 * source, layer.bias)
    assert torch.equal(twin(*inputs), expected)
    twin(*inputs).sum().backward()
    assert source.grad.any()
    twin.fix_weight(source.detach())
    twin.shift_bias(torch.full((5,), 3.0))
    low, high = -torch.ones(5), torch.ones(5)
    twin.weight_quantizer.set_range(low, high)
    expected = nn.functional.linear(x, source, layer.bias + 3)
    torch.testing.assert_close(twin(*inputs), expected)
    twin.restore(saved)
    assert torch.equal(twin(*inputs), nearest)


def test_dropping_ends():
    layer, inputs = LAYERS['linear']
    twin = twin_of(layer)
    attach(twin, inputs[0])
    quantized = twin(*inputs)
    with float_mode(twin, weight=False):
        exact = twin(*inputs)
    with twin.dropping(1.0, torch.Generator()):
        assert torch.equal(twin(*inputs), exact)
        with pytest.raises(KeyError), twin.dropping(0.0, None):
            assert torch.equal(twin(*inputs), quantized)
            raise KeyError
        assert torch.equal(twin(*inputs), exact)
    assert torch.equal(twin(*inputs), quantized)


def test_several_listeners():
    layer, inputs = LAYERS['linear']
    twin = twin_of(layer)
    attach(twin, inputs[0])
    seen = []

    def note(port, level, x):
        seen.append((port, level, x))

    with twin.listening(note, quantized=True), twin.listening(note):
        with pytest.raises(KeyError), twin.listening(note):
            twin(*inputs)
            raise KeyError
        twin(*inputs)
    twin(*inputs)
    x, y = inputs[0], twin.act_quantizers['input'](inputs[0])
    assert [s[:2] for s in seen] == [('input', 0)] * 5
    for (*_, found), expected in zip(seen, (y, x, x, y, x), strict=True):
        assert torch.equal(found, expected)
