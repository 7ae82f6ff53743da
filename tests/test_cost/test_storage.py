# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Sizes that the result file reports, counted by hand."""

import pytest
import torch
from torch import nn

from mmdet_ptq.apis import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.calibration import Batches
from mmdet_ptq.cost import REST, storage_bits, storage_mb
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.layers import convert
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.quantizers import InstanceGroupQuantizer, UniformQuantizer
from mmdet_ptq.surgery import FoldedNorm
from mmdet_ptq.testing.detectors import noise_batches, random_detector


def test_every_bit_is_counted_once():
    model = nn.Sequential(nn.Linear(10, 6), nn.Linear(10, 6), nn.Linear(6, 2))
    convert(model)
    weight = UniformQuantizer(3, granularity='channel', role='weight')
    weight.set_range(-torch.ones(6), torch.ones(6))
    # one quantizer for two layers, one symmetric
    shared, own = UniformQuantizer(4), UniformQuantizer(8, symmetric=True)
    for quantizer in (shared, own):
        quantizer.set_range(-torch.ones(1), torch.ones(1))
    model[0].attach(weight, dict(input=shared))
    model[1].attach(acts=dict(input=shared))
    model[2].attach(acts=dict(input=own))
    full, packed = storage_mb(model)
    count = 66 + 66 + 14
    assert full == count * 32 / 8e6
    weights = 60 * 3 + 6 * (32 + 3)
    assert packed == ((count - 60) * 32 + weights + 32 + 4 + 32) / 8e6
    # a learned step is no parameter of the detector
    own.learn_step()
    assert storage_mb(model) == (full, packed)


def test_inputs_count_the_rows_that_they_have():
    model = nn.Sequential(nn.Linear(3, 2))
    convert(model)
    levels = UniformQuantizer(4, granularity='channel', per_level=True)
    model[0].attach(acts=dict(input=levels), levels=5)
    full, packed = storage_mb(model)
    assert packed == full  # no ranges yet
    levels.set_range(-torch.ones(5, 3), torch.ones(5, 3))
    packed = storage_mb(model)[1]
    assert round((packed - full) * 8e6, 6) == 5 * 3 * (32 + 4)


def test_grids_that_images_choose_by_hand():
    """Two ends of 32 bits each; nothing else of an activation is stored."""
    model = nn.Sequential(nn.Linear(16, 2))
    convert(model)
    grids = InstanceGroupQuantizer(4, num_groups=8, axis=-1)
    model[0].attach(acts=dict(input=grids))
    full, packed = storage_mb(model)
    assert packed == full
    grids.set_range(-torch.ones(8), torch.ones(8))
    packed = storage_mb(model)[1]
    assert round((packed - full) * 8e6, 6) == 8 * 64


#: inputs that have no range yet, and what they take once they have one
AHEAD = [
    dict(type='UniformQuantizer'),
    dict(type='UniformQuantizer', per_level=True),
    dict(type='UniformQuantizer', granularity='group', group_size=2),
    dict(type='ChannelGroups', widths=[3, 5], bits=5, channels=8),
    dict(type='PowerOfTwoQuantizer'),
]


@pytest.mark.parametrize('act', AHEAD, ids=str)
def test_size_is_known_before_calibration(tiny, act):
    """As large as it is afterwards."""
    config = parse_quant_cfg(
        dict(
            bits='w3a5',
            rules=[
                dict(match='*', skip=True),
                dict(match='bbox_head.cls_convs.0.conv', skip=False, act=act),
            ],
            passes=[
                dict(type='Observe', observer=dict(type='MinMaxObserver')),
                dict(type='SetRanges'),
            ],
        )
    )
    (batch,) = noise_batches(1, (64, 64))
    ready = [random_detector(tiny.config['retinanet']) for _ in range(2)]
    before = prepare(ready[0], config, batch, Batches(ready[0], [batch]))
    after = quantize_detector(ready[1], [batch], config.to_dict())
    ahead = storage_bits(ready[0], before.graph)
    assert ahead == storage_bits(ready[1], after.graph)
    # known from the ranges alone, too
    assert ahead == storage_bits(ready[1])
    assert ahead[REST][0] == ahead[REST][1] > 0


#: bits of each element of a quantizer's state; what is missing says nothing
STATE = dict(scale=32, log_k=16, a=16)


@pytest.mark.parametrize('weight', ['UniformQuantizer', 'LLAQuantizer'])
def test_against_the_packed_artefact(tiny, tmp_path, weight):
    model = random_detector(tiny.config['retinanet'])
    session = quantize_detector(
        model,
        noise_batches(2, (64, 64)),
        dict(
            bits='w3a5',
            rules=[
                dict(
                    match='*',
                    weight=dict(type=weight, granularity='channel'),
                    act=dict(type='UniformQuantizer', per_level=True),
                ),
                dict(match='@stem', weight=dict(bits=8)),
                dict(match='@prediction', skip=True),
            ],
            passes=[
                dict(type='FoldBatchNorm'),
                dict(type='Observe', observer=dict(type='MinMaxObserver')),
                dict(type='SetRanges'),
            ],
        ),
    )
    save_quantized(session, tmp_path / 'quantized.pth')
    saved = torch.load(tmp_path / 'quantized.pth', weights_only=True)
    parameters = {n for n, _ in model.named_parameters()}
    own, state = 0, 0
    for name, tensor in saved['tensors'].items():
        layer, _, rest = name.partition('_quantizer')
        if not rest:
            # the mean and deviation of pixels are constants of the config
            own += tensor.nbytes if name in parameters else 0
            continue
        plan = session.plan.layers[
            layer.removesuffix('.weight').removesuffix('.act')
        ]
        kind, port = name.rsplit('.', 1)[1], rest.split('.')[1]
        spec = plan.acts[port] if rest[0] == 's' else plan.weight
        bits = spec.bits if kind == 'zero_point' else STATE.get(kind, 0)
        state += tensor.numel() * bits
    codes = sum(t.numel() for t in saved['codes'].values())
    _, packed = storage_mb(model)
    # each layer's codes are filled up to a byte
    filled = sum(
        -layer.weight.numel() * layer.weight_quantizer.bits % 8
        for layer in session.layers.values()
        if layer.weight_quantizer is not None
    )
    assert (own + codes) * 8 + state - filled == round(packed * 8e6, 3)
    assert len(saved['codes']) > 20 and state > 8000
    # and a loaded one is as large
    again = load_quantized(
        random_detector(tiny.config['retinanet']), tmp_path / 'quantized.pth'
    )
    assert storage_mb(again) == storage_mb(model)


#: 10^6 bytes: float, then all but predictions, then all but heads at 2, 3,
#: 4 and 8 bits (stem 8), without scales and zero points
UNIQUE = dict(
    faster=(166.9, (12.1, 17.3, 22.4, 43.1), (66.4, 69.8, 73.1, 86.5)),
    retina=(151.8, (16.1, 20.7, 25.2, 43.3), (33.8, 37.8, 41.7, 57.4)),
)


@pytest.mark.parametrize('name', UNIQUE)
def test_real_detectors(kit, detectors, name):
    graph = detectors[name][1]
    model = kit.build(name)
    for norm, layer in graph.bn_folds.items():
        FoldedNorm(norm, layer).rebuild(model)
    convert(model)
    before, *after = UNIQUE[name]
    assert round(storage_mb(model)[0], 1) == before
    for left, sizes in zip(
        [{'prediction'}, {'prediction', 'head'}], after, strict=True
    ):
        for bits, expected in zip((2, 3, 4, 8), sizes, strict=True):
            scales = 0
            for layer, node in graph.layers.items():
                width = 8 if 'stem' in node.roles else bits
                quantizer = UniformQuantizer(
                    width, granularity='channel', role='weight'
                )
                if node.roles & left:
                    quantizer = None
                twin = model.get_submodule(layer)
                twin.set_quantizer('weight', quantizer)
                if quantizer is not None:
                    scales += len(twin.weight) * (32 + width)
            found = storage_mb(model)[1] - scales / 8e6
            assert round(found, 1) == expected
