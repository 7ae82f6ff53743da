# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Who changes a twin."""

import ast
from pathlib import Path

import pytest
import torch
from seeded import seeded
from torch import nn
from twin_kit import LAYERS, attach, quantizer, twin_of

import mmdet_ptq
from mmdet_ptq.layers import MatMul, float_mode
from mmdet_ptq.quantizers import UniformQuantizer

ROOT = Path(mmdet_ptq.__file__).parent
STATE = {
    'act_quantizers',
    'baked',
    'bias_shift',
    'drop_prob',
    'generator',
    'levels',
    'quantize_act',
    'quantize_weight',
    'rounded',
    'weight_quantizer',
    'weight_source',
}


def changed(source):
    """Names of attributes, not of ``self``, that a source assigns."""
    for node in ast.walk(ast.parse(source)):
        targets = getattr(node, 'targets', [getattr(node, 'target', None)])
        for target in ast.walk(ast.Tuple(elts=[t for t in targets if t])):
            if (
                isinstance(target, ast.Attribute)
                and not isinstance(target.ctx, ast.Load)
                and getattr(target.value, 'id', '') != 'self'
            ):
                yield target.attr
            elif isinstance(target, ast.Subscript):
                yield getattr(target.value, 'attr', '')


def test_a_change_is_found():
    source = (
        'a.rounded = 1\nb.c.baked, d = 2, 3\nself.levels = 4\n'
        'e.act_quantizers["x"] = f.drop_prob\ndel g.act_quantizers[h.rounded]'
    )
    assert sorted(changed(source)) == [
        'act_quantizers',
        'act_quantizers',
        'baked',
        'rounded',
    ]


def test_a_twin_changes_through_its_methods():
    wrong = [
        f'{path.relative_to(ROOT)}: {name}'
        for path in ROOT.rglob('*.py')
        if path.parent.name != 'layers'
        for name in changed(path.read_text())
        if name in STATE
    ]
    assert not wrong


def test_tests_change_a_twin_through_its_methods():
    # raw outputs of heads have levels too
    state = STATE - {'levels'}
    tests = Path(__file__).parents[1]
    wrong = [
        f'{path.relative_to(tests)}: {name}'
        for path in tests.rglob('*.py')
        for name in changed(path.read_text())
        if name in state
    ]
    assert not wrong


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
    twin.set_quantizer('input', None)
    twin.set_quantizer('input', None)
    assert torch.equal(
        twin(*inputs),
        nn.functional.linear(*inputs, other(layer.weight), layer.bias),
    )
    twin.set_quantizer('weight', None)
    assert torch.equal(twin(*inputs), layer(*inputs))
    with pytest.raises(ValueError, match=r"'inputs'.*mean 'input'.*weight"):
        twin.set_quantizer('inputs', None)
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
    with twin.dropping(1.0, seeded(0)):
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
