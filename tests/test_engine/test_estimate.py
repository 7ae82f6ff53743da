# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Costs without a checkpoint are those of a run."""

import pytest
from mmengine.config import Config

from mmdet_ptq.apis import quantize_detector
from mmdet_ptq.cost import cost_of
from mmdet_ptq.engine.estimate import estimate, size_of
from mmdet_ptq.errors import PTQError, QuantConfigError
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.testing import (
    config_path,
    noise_batches,
    random_detector,
)

QUANT = dict(recipe='minmax', bits='w4a6')


def test_as_after_a_run(tiny):
    path = tiny.config['retinanet']
    cfg, quant = Config.fromfile(path), parse_quant_cfg(QUANT)
    found = estimate(cfg, quant, (64, 64))
    model = random_detector(path)
    session = quantize_detector(model, noise_batches(1, (64, 64)), QUANT)
    want = cost_of(model, session.graph, session.plan)
    assert found['cost'] == want
    assert found['cost']['input'] == [1, 3, 64, 64]
    assert (found['recipe'], found['bits']) == ('minmax', 'w4a6')
    names = {one['name'] for one in found['layers']['float']}
    assert names == {'bbox_head.retina_cls', 'bbox_head.retina_reg'}


@pytest.mark.parametrize(
    ('recipe', 'said'),
    [
        ('gptq_mixed', 'AllocateBits chooses widths in a run'),
        ('igq_allocate', 'AllocateGroups chooses numbers of grids in a run'),
    ],
)
def test_what_a_run_chooses_is_said(tiny, recipe, said):
    cfg = Config.fromfile(tiny.config['retinanet'])
    quant = parse_quant_cfg(dict(recipe=recipe, bits='w4a4'))
    notes = estimate(cfg, quant, (64, 64))['notes']
    assert any(note.startswith(said) for note in notes)


def test_a_model_that_cannot_be_built(tiny):
    cfg = Config.fromfile(tiny.config['retinanet'])
    cfg.model.backbone.type = 'NoSuchNet'
    with pytest.raises(PTQError, match=r'cannot be built: .*NoSuchNet'):
        estimate(cfg, parse_quant_cfg(QUANT), (64, 64))


def test_embeddings_that_only_training_starts(tiny):
    """MMDetection allocates them and leaves what was in memory there."""
    cfg = Config.fromfile(
        str(
            config_path(
                'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
            )
        )
    )
    cfg.model.backbone.update(depth=18, base_channels=8)
    cfg.model.neck.in_channels = [16, 32, 64]
    for part in (cfg.model.encoder, cfg.model.decoder):
        part.num_layers = 1
    cost = estimate(cfg, parse_quant_cfg(QUANT), (64, 64))['cost']
    assert cost['macs'] > 0


@pytest.mark.parametrize(
    ('scale', 'size'), [((1333, 800), (800, 1333)), ([640, 640], (640, 640))]
)
def test_size_of_the_test_pipeline(scale, size):
    resize = dict(type='Resize', scale=scale, keep_ratio=True)
    pipeline = [dict(type='LoadImageFromFile'), resize]
    dataset = dict(type='ConcatDataset', datasets=[dict(pipeline=pipeline)])
    assert size_of(Config(dict(test_dataloader=dict(dataset=dataset)))) == size


def test_no_size_is_said():
    with pytest.raises(QuantConfigError, match='give --size HEIGHT WIDTH'):
        size_of(Config(dict(test_dataloader=dict(dataset=dict(type='A')))))
