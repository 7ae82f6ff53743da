# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Layers that bring their input channels to one scale."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.surgery import ScaledInput, can_shift, edits_of

FACTORS = torch.tensor([0.5, 2.0, 10.0, 0.1])
SHIFT = torch.tensor([1.0, -2.0, 0.0, 3.0])
LAYERS = dict(
    linear=(lambda: nn.Linear(4, 5), (3, 7, 4), True),
    bare=(lambda: nn.Linear(4, 5, bias=False), (3, 4), True),
    pointwise=(lambda: nn.Conv2d(4, 5, 1), (2, 4, 5, 6), True),
    dense=(lambda: nn.Conv2d(4, 5, 3), (2, 4, 5, 6), True),
    padded=(lambda: nn.Conv2d(4, 5, 3, 2, 1), (2, 4, 5, 6), False),
    transposed=(lambda: nn.ConvTranspose2d(4, 5, 2, 2), (2, 4, 5, 6), False),
)


def twin(kind):
    torch.manual_seed(0)
    make, shape, shiftable = LAYERS[kind]
    model = nn.Sequential(make())
    assert can_shift(model[0]) is shiftable
    convert(model)
    return model, torch.randn(shape), shiftable


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('kind', LAYERS)
@torch.no_grad()
def test_the_float_layer_gives_the_same(kind, shifted):
    model, x, shiftable = twin(kind)
    model.double()
    before, x = model(x.double()), x.double()
    edit = ScaledInput.by('0', FACTORS, SHIFT if shifted else None)
    if shifted and not shiftable:
        weight = model[0].weight.clone()
        with pytest.raises(PTQError, match='adds zeros'):
            edit.apply(model)
        assert torch.equal(model[0].weight, weight)
        return
    edit.apply(model)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('first', [None, SHIFT])
@pytest.mark.parametrize('second', [None, SHIFT.flip(0)])
@torch.no_grad()
def test_a_layer_is_scaled_again(first, second):
    """The second edit takes what the layer took for its input."""
    model, x, _ = twin('linear')
    model.double()
    before, x = model(x.double()), x.double()
    edits = [
        ScaledInput.by('0', FACTORS, first),
        ScaledInput.by('0', FACTORS.flip(0) * 3, second),
    ]
    seen, wanted = [], x
    for edit in edits:
        edit.apply(model)
        wanted = wanted / edit.factors
        wanted = wanted if edit.shift is None else wanted - edit.shift
        with model[0].listening(lambda p, i, t: seen.append(t)):
            found = model(x)
        torch.testing.assert_close(found, before, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(seen[-1], wanted)
    other = nn.Sequential(LAYERS['linear'][0]())
    for edit in edits:
        edit.rebuild(other)
    convert(other)
    other.double().load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(x), found)


@pytest.mark.parametrize('kind', LAYERS)
@torch.no_grad()
def test_rebuilt_it_takes_the_tensors(kind):
    model, x, shiftable = twin(kind)
    edit = ScaledInput.by('0', FACTORS, SHIFT if shiftable else None)
    edit.apply(model)
    found = edits_of(json.loads(json.dumps([edit.to_dict()])))
    other = nn.Sequential(LAYERS[kind][0]())
    found[0].rebuild(other)
    convert(other)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(x), model(x))
    assert other[0].input_factors.tolist() == FACTORS.tolist()


def test_what_cannot_be_scaled():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Linear(3, 2))
    with pytest.raises(PTQError, match='groups of input channels'):
        ScaledInput.by('0', FACTORS).apply(model)
    with pytest.raises(PTQError, match='3 input channels'):
        ScaledInput.by('1', FACTORS).apply(model)


@torch.no_grad()
def test_codes_are_all_that_is_multiplied_up_to_the_border():
    """Against integers: a padded convolution, an affine grid of 3 bits."""
    model, _, _ = twin('padded')
    layer = model[0]
    x = FACTORS.view(1, 4, 1, 1) * (torch.randn(2, 4, 5, 6) + 0.5)
    ScaledInput.by('0', FACTORS).apply(model)
    act, weight = (
        UniformQuantizer(3),
        UniformQuantizer(4, granularity='channel', axis=0, role='weight'),
    )
    scaled = x / FACTORS.view(1, 4, 1, 1)
    act.set_range(scaled.amin()[None], scaled.amax()[None])
    rows = weight.granularity.rows(layer.weight)
    weight.set_range(rows.amin(1), rows.amax(1))
    layer.attach(weight=weight, acts=dict(input=act))
    found = layer(x)
    codes, zero = act.encode(scaled), int(act.zero_point)
    assert 0 < zero < 7
    # what is padded is the code of 0 in every channel
    codes = functional.pad(codes.long(), (1, 1, 1, 1), value=zero) - zero
    kernel = weight.encode(layer.weight).long()
    kernel = kernel - weight.zero_point.long().view(-1, 1, 1, 1)
    whole = torch.zeros(found.shape, dtype=torch.long)
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            part = codes[:, None, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            whole[:, :, i, j] = (part * kernel[None]).sum((2, 3, 4))
    steps = act.scale * weight.scale.view(1, -1, 1, 1)
    expected = whole * steps + layer.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
