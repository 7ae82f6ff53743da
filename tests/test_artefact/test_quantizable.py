# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A detector that takes quantized files: whoever loads, the same bits."""

import copy

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.runner import load_checkpoint
from outcomes import same
from torch import nn

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.artefact import as_float, as_quantizable
from mmdet_ptq.engine.work_config import work_config
from mmdet_ptq.errors import CheckpointError
from mmdet_ptq.layers import quant_layers
from mmdet_ptq.testing import noise_batches

META = dict(
    classes=('dark', 'grey', 'light'),
    palette=[(1, 2, 3), (4, 5, 6), (7, 8, 9)],
    weights=np.arange(3.0),
)


@pytest.fixture(scope='module')
def made(tiny, tmp_path_factory):
    """A quantized detector, its file, and the config for a work dir."""
    folder = tmp_path_factory.mktemp('quantizable')
    float_config = str(tiny.config['retinanet'])
    model = init_detector(
        float_config, str(tiny.checkpoint['retinanet']), device='cpu'
    )
    model.dataset_meta = dict(META)
    cfg = dict(recipe='minmax', bits='w4a4')
    session = quantize_detector(model, noise_batches(1, (64, 64)), cfg)
    save_quantized(session, folder / 'quantized.pth')
    work_config(Config.fromfile(float_config)).dump(folder / 'config.py')
    image = cv2.imread(str(tiny.root / 'val' / '0.png'))
    return (
        model,
        str(folder / 'quantized.pth'),
        str(folder / 'config.py'),
        image,
    )


def found(model, image):
    result = inference_detector(model, image)
    assert len(result.pred_instances.scores)
    return result.pred_instances.to_dict()


def test_init_detector(made):
    model, file, config, image = made
    expected = found(copy.deepcopy(model), image)
    again = init_detector(config, file, device='cpu')
    assert quant_layers(again).keys() == quant_layers(model).keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert same(expected, found(again, image))
    meta = again.dataset_meta
    assert meta['classes'] == META['classes']
    assert np.array_equal(meta['weights'], META['weights'])


def test_det_inferencer_draws(made, tmp_path):
    """With what is saved of the palette."""
    model, file, config, image = made
    cfg = Config.fromfile(config)
    door = DetInferencer(cfg, file, device='cpu', show_progress=False)
    instances = door(image, return_datasamples=True)['predictions'][0]
    expected = found(copy.deepcopy(model), image)
    assert same(expected, instances.pred_instances.to_dict())
    door.visualizer.dataset_meta = door.model.dataset_meta
    drawn = door(image, return_vis=True, out_dir='')['visualization'][0]
    assert drawn.shape == (*image.shape[:2], 3)


def test_float_weights_as_ever(made, tiny):
    _, _, config, image = made
    float_file = str(tiny.checkpoint['retinanet'])
    plain = init_detector(
        str(tiny.config['retinanet']), float_file, device='cpu'
    )
    again = init_detector(config, float_file, device='cpu')
    assert not quant_layers(again)
    assert type(again) is type(plain)
    assert same(found(plain, image), found(again, image))


def test_by_load_state_dict(made):
    """As PyTorch loads, strictly; also a copy of the detector."""
    model, file, config, _ = made
    fresh = copy.deepcopy(MODELS.build(Config.fromfile(config).model))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ('kind', 'outside'),
    [
        ('DetTTAModel', True),
        ('DetTTAModel', False),
        ('SemiBaseDetector', True),
    ],
)
def test_inside_a_wrapper(made, kind, outside):
    """Whether the config names the wrapper or what is inside."""
    model, file, config, _ = made
    detector = Config.fromfile(config).model
    if kind == 'DetTTAModel':
        inside = as_float(detector) if outside else detector
        cfg = dict(type=kind, module=inside, tta_cfg=dict(max_per_img=9))
    else:
        cfg = dict(
            type=kind,
            detector=as_float(detector),
            semi_train_cfg=dict(),
            semi_test_cfg=dict(),
        )
    wrapped = MODELS.build(ConfigDict(as_quantizable(cfg) if outside else cfg))
    load_checkpoint(wrapped, file)
    inner = wrapped.module if kind == 'DetTTAModel' else wrapped.teacher
    for name, tensor in model.state_dict().items():
        assert torch.equal(inner.state_dict()[name], tensor), name
    if kind == 'SemiBaseDetector':
        assert not quant_layers(wrapped.student)


def test_a_file_for_the_root_is_not_taken_by_a_part(made):
    _, file, config, _ = made
    part = MODELS.build(Config.fromfile(config).model)
    with pytest.raises(CheckpointError, match='which a float model cannot'):
        nn.ModuleDict(dict(part=part)).load_state_dict(
            torch.load(file, weights_only=True), strict=False
        )
    assert not quant_layers(part)


def test_meta_of_the_python_door(made, tiny):
    _, file, _, _ = made
    fresh = MODELS.build(Config.fromfile(tiny.config['retinanet']).model)
    meta = load_quantized(fresh, file).dataset_meta
    assert meta.keys() == META.keys()
    assert meta['classes'] == META['classes']
    assert meta['palette'] == META['palette']
    assert isinstance(meta['weights'], np.ndarray)


def test_configs_there_and_back():
    plain = dict(type='RetinaNet', backbone=dict(type='ResNet'))
    wrapped = as_quantizable(plain)
    assert wrapped['type'] == 'QuantizableDetector'
    assert as_quantizable(wrapped) == wrapped
    assert as_float(wrapped) == plain == as_float(plain)
