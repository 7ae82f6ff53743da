# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Transformer recipes on the detectors that papers quantize."""

import functools
import runpy
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.config import utils as config_utils
from torch import nn

from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.passes import FoldBatchNorm
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg
from mmdet_ptq.testing import noise_batches
from tools.docs.make_ptq_configs import DETECTORS, RECIPES

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs' / 'ptq'
KINDS = {
    'mask-rcnn': ('MaskRCNN', 'StandardRoIHead'),
    'cascade-mask-rcnn': ('CascadeRCNN', 'CascadeRoIHead'),
    'detr': ('DETR', None),
}
SWIN = 'mask-rcnn_swin-t-p4-w7_fpn_3x_coco'
CASCADE = f'cascade-{SWIN}'
DETR = 'detr_r50_8xb2-150e_coco'


@pytest.fixture(scope='module')
def load():
    """Reads a config."""
    with pytest.MonkeyPatch.context() as patch:
        # for each file it reads all metafiles of MMDetection anew
        patch.setattr(config_utils, 'load', functools.cache(config_utils.load))
        yield functools.cache(
            lambda name: Config.fromfile(str(CONFIGS / f'{name}.py'))
        )


def test_every_base_is_of_the_detector_in_its_name(load):
    folder = CONFIGS / '_base_' / 'transformers'
    assert {f.stem for f in folder.glob('*.py')} == {*DETECTORS, 'settings'}
    for name in DETECTORS:
        cfg = load(f'_base_/transformers/{name}')
        kind, _, rest = name.partition('_')
        model, roi_head = KINDS[kind]
        assert cfg.model.type == model, name
        assert cfg.runner_type == 'PTQRunner', name
        assert 'mmdet_ptq' in cfg.custom_imports.imports, name
        assert cfg.test_dataloader.dataset.type == 'CocoDataset', name
        if roi_head:
            assert cfg.model.roi_head.type == roi_head, name
            third = 18 if rest.startswith('swin-s') else 6
            assert cfg.model.backbone.depths == [2, 2, third, 2], name
            assert cfg.train_cfg.max_epochs == 36, name


def test_every_cell_says_its_recipe_and_bits():
    # detectors share what is said of a recipe and a width
    parse = functools.cache(lambda text: parse_quant_cfg(eval(text)))
    for recipe in RECIPES:
        assert load_recipe(recipe)['passes']
        for file in (CONFIGS / recipe).glob('*.py'):
            said = runpy.run_path(str(file))
            assert (file.parent / said['_base_']).is_file()
            quant = parse(repr(said['quant_cfg']))
            assert quant.recipe == recipe == file.parent.name
            detector, bits = file.stem.rsplit('_', 1)
            assert str(quant.bits) == bits
            assert Path(said['_base_']).stem == detector


@pytest.fixture(scope='module')
def session_of(load):
    """A detector of few channels, prepared as a config says."""
    register_all_modules()

    def prepared(name):
        model = load(name).model
        if 'roi_head' in model:
            model.backbone.update(embed_dims=24, num_heads=[1, 1, 2, 2])
            model.neck.in_channels = [24, 48, 96, 192]
            heads = model.roi_head.bbox_head
            for head in heads:
                head.update(conv_out_channels=16, fc_out_channels=16)
            model.roi_head.mask_head.conv_out_channels = 8
            model.test_cfg.rpn.max_per_img = 10
        # pretrained weights would be fetched by init_weights only
        built = MODELS.build(model)
        quant = parse_quant_cfg(load(name).quant_cfg.to_dict())
        (batch,) = noise_batches(1, (64, 64))
        return prepare(built, quant, batch, Batches(built, [batch]))

    return prepared


def test_a_cascade_of_swin(session_of):
    """Heads and backbone are quantized; its batch norms go into layers."""
    session = session_of(f'repq_vit/{CASCADE}_w4a4')
    layers = session.plan.layers
    assert layers['backbone.stages.2.blocks.5.attn.w_msa.qkv'].weight.bits == 4
    for stage in range(3):
        head = f'roi_head.bbox_head.{stage}'
        assert layers[f'{head}.shared_convs.3.conv'].weight.bits == 4
        assert layers[f'{head}.shared_fcs.0'].acts['input'].bits == 4
        assert layers[f'{head}.fc_reg'].weight is None
        # boxes of each class
        assert session.layers[f'{head}.fc_reg'].out_features == 4 * 80
    FoldBatchNorm().run(session)
    folded = [e for e in session.edits if type(e).__name__ == 'FoldedNorm']
    assert len(folded) == 3 * 4
    left = [
        m
        for m in session.model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert not left


def test_groups_on_detr(session_of):
    layers = session_of(f'igq_vit/{DETR}_w6a6').plan.layers
    found = layers['encoder.layers.0.ffn.layers.1'].acts['input']
    assert (found.type, found.bits) == ('InstanceGroupQuantizer', 6)
