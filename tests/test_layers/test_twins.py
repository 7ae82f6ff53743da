# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every twin beside the layer that it replaces."""

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from twin_kit import LAYERS, attach, quantizer, twin_of

from mmdet_ptq.layers import MatMul, QuantLayer, float_mode


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


@pytest.mark.parametrize('name', LAYERS)
def test_inputs_given_by_name_are_quantized(name):
    layer, inputs = LAYERS[name]
    twin = twin_of(layer)
    attach(twin, inputs[0])
    expected = twin(*inputs)
    names = list(inspect.signature(layer.forward).parameters)
    given = dict(zip(names, inputs, strict=False))
    assert torch.equal(twin(**dict(reversed(given.items()))), expected)
    heard = []
    with twin.listening(lambda port, level, x: heard.append(x)):
        twin(inputs[0], **dict(list(given.items())[1:]))
        twin(**given)
    assert len(heard) == 2 and all(x is inputs[0] for x in heard)


def test_products_given_by_name():
    twin = twin_of(MatMul())
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5, 4)
    twin.attach(acts={p: quantizer('act', a, 1, 2) for p in 'ab'})
    expected = twin(a, b)
    assert not torch.equal(expected, a @ b)
    assert torch.equal(twin(a, b=b), expected)
    assert torch.equal(twin(b=b, a=a), expected)


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
