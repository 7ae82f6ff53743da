# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What stands in the file, for every kind of weight quantizer."""

import pytest
import torch
from mmdet.models.layers.transformer.utils import ConditionalAttention
from mmengine.model import BaseModel
from torch import nn
from two_levels import PASSES, batches

from mmdet_ptq.apis import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.errors import CheckpointError
from mmdet_ptq.quantizers import pack
from mmdet_ptq.testing.detectors import noise_batches, random_detector

WEIGHTS = {
    'affine': dict(type='UniformQuantizer', granularity='channel'),
    'symmetric': dict(
        type='UniformQuantizer', granularity='channel', symmetric=True
    ),
    'llaq': dict(type='LLAQuantizer'),
    'subset': dict(type='SubsetQuantizer'),
}


@pytest.mark.parametrize('kind', WEIGHTS)
def test_codes_count_from_the_lowest(tiny, tmp_path, kind):
    model = random_detector(tiny.config['retinanet'])
    session = quantize_detector(
        model,
        noise_batches(2, (64, 64)),
        dict(
            bits='w3a5',
            rules=[
                dict(
                    match='*',
                    weight=WEIGHTS[kind],
                    act=dict(type='UniformQuantizer'),
                ),
                dict(match='@prediction', skip=True),
            ],
            passes=[
                dict(type='FoldBatchNorm'),
                dict(type='Observe', observer=dict(type='MinMaxObserver')),
                dict(type='SetRanges'),
            ],
        ),
    )
    path = tmp_path / 'quantized.pth'
    save_quantized(session, path)
    saved = torch.load(path, weights_only=True)
    assert saved['mmdet_ptq']['format'] == 2
    lowest = -4 if kind == 'symmetric' else 0
    assert len(saved['codes']) > 20
    for name, packed in saved['codes'].items():
        layer = session.layers[name]
        codes = layer.weight_quantizer.encoding().encode(layer.weight)
        assert torch.equal(packed, pack(codes - lowest, 3))
        assert f'{name}.weight' not in saved['tensors']
    again = load_quantized(random_detector(tiny.config['retinanet']), path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_part_that_is_not_registered(tiny, tmp_path):
    """A quantizer or an edit from outside, whose module was not imported."""
    model = random_detector(tiny.config['retinanet'])
    cfg = dict(recipe='minmax', bits='w8a8')
    session = quantize_detector(model, noise_batches(1, (64, 64)), cfg)
    path = tmp_path / 'quantized.pth'
    save_quantized(session, path)
    for part in ('layers', 'edits'):
        saved = torch.load(path, weights_only=True)
        found = saved['mmdet_ptq'][part]
        if part == 'layers':
            next(iter(found.values()))['weight']['type'] = 'FromOutside'
        else:
            found[0]['type'] = 'FromOutside'
        torch.save(saved, tmp_path / 'outside.pth')
        with pytest.raises(
            CheckpointError, match=r"'FromOutside'.*custom_imports"
        ):
            load_quantized(
                random_detector(tiny.config['retinanet']),
                tmp_path / 'outside.pth',
            )


def test_a_weight_off_its_grid_is_saved_in_full(tiny, tmp_path):
    """What was simulated is what is saved."""
    model = random_detector(tiny.config['retinanet'])
    cfg = dict(recipe='minmax', bits='w4a8')
    session = quantize_detector(model, noise_batches(1, (64, 64)), cfg)
    name, other = list(session.layers)[1:3]
    with torch.no_grad():
        session.layers[name].weight.flatten()[0] += 1e-3
    path = tmp_path / 'quantized.pth'
    save_quantized(session, path)
    saved = torch.load(path, weights_only=True)
    assert name not in saved['codes'] and other in saved['codes']
    again = load_quantized(random_detector(tiny.config['retinanet']), path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


class Attending(BaseModel):
    """Routed products, and a head that counts its own pyramid levels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 16, 1)
        self.neck = ConditionalAttention(16, 4)
        self.bbox_head = Head()

    def predict(self, inputs):
        x = self.backbone(torch.stack(list(inputs)))
        rows = x.flatten(2).mT
        x = self.neck(rows, rows, rows)[0].mT.reshape(x.shape)
        return self.bbox_head([x, 0.1 * x[..., ::2, ::2]])

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'predict':
            return self.predict(inputs)
        self.bbox_head.forward([self.backbone(torch.stack(list(inputs)))] * 3)
        return self.predict(inputs)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Conv2d(16, 4, 1)

    def forward(self, maps):
        return [self.tower(x) for x in maps]


@torch.no_grad()
def test_products_and_levels_are_there_again(tmp_path):
    rule = dict(match='*', weight={}, act=dict(per_level=True))
    model, data = Attending().eval(), batches()
    session = quantize_detector(
        model, data, dict(bits='w4a4', rules=[rule], passes=PASSES)
    )
    layers = session.layers
    for name in ('neck.matmul_qk', 'neck.matmul_pv'):
        assert set(layers[name].act_quantizers) == {'a', 'b'}
    assert layers['bbox_head.tower'].levels == 2
    path = tmp_path / 'quantized.pth'
    save_quantized(session, path)
    assert 'bbox_head' in torch.load(path)['mmdet_ptq']['heads']
    again = load_quantized(Attending().eval(), path)
    found = []
    for one in (model, again, model, again):
        with pytest.warns(UserWarning, match='tower: it was not called'):
            one.bbox_head([torch.zeros(1, 16, 1, 1)])
        found.append(one.predict(data[0]['inputs']))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert torch.equal(a, b)
    # and they are those of a whole call of the detector
    for a, b in zip(model(**data[0], mode='predict'), found[0], strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_recipe(tiny):
    """Names and shapes are the same, and what they mean is not."""

    def quantized(bits, symmetric):
        model = random_detector(tiny.config['retinanet'])
        rule = dict(match='*', weight=dict(symmetric=symmetric))
        cfg = dict(recipe='minmax', bits=bits, rules=[rule])
        return quantize_detector(model, noise_batches(1, (64, 64)), cfg).model

    source = quantized('w8a8', False)
    state = source.state_dict()
    twice = quantized('w8a8', False)
    twice.load_state_dict(state)
    for bits, symmetric in (('w4a8', False), ('w8a8', True)):
        with pytest.raises(RuntimeError, match=r'the same recipe'):
            quantized(bits, symmetric).load_state_dict(state)


def test_a_load_that_fails_says_what_became_of_the_model(tiny, tmp_path):
    model = random_detector(tiny.config['retinanet'])
    cfg = dict(recipe='minmax', bits='w8a8')
    session = quantize_detector(model, noise_batches(1, (64, 64)), cfg)
    path = tmp_path / 'quantized.pth'
    save_quantized(session, path)
    with pytest.raises(CheckpointError, match='is quantized already'):
        load_quantized(model, path)
    saved = torch.load(path, weights_only=True)
    saved['tensors'].popitem()
    torch.save(saved, tmp_path / 'damaged.pth')
    fresh = random_detector(tiny.config['retinanet'])
    with pytest.raises(CheckpointError, match=r'of no use now.*build it anew'):
        load_quantized(fresh, tmp_path / 'damaged.pth')
    saved['mmdet_ptq']['format'] = 99
    torch.save(saved, tmp_path / 'damaged.pth')
    fresh = random_detector(tiny.config['retinanet'])
    before = str(fresh)
    with pytest.raises(CheckpointError) as told:
        load_quantized(fresh, tmp_path / 'damaged.pth')
    assert 'of no use' not in str(told.value)
    assert str(fresh) == before
