# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every row of Reg-PTQ's tables has a config that runs as it is."""

import functools
import json
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.config import utils as config_utils

from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg, recipe_names
from mmdet_ptq.testing import noise_batches
from tools.docs.make_ptq_configs import RECIPES

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs' / 'ptq'
#: those of Reg-PTQ; others are in test_transformer_configs.py
FOLDERS = (
    *('_base_', 'fp_head', 'llaq_heads', 'reg_ptq', 'thresholds'),
    'uniform_heads',
)
FILES = sorted(
    file for folder in FOLDERS for file in (CONFIGS / folder).glob('*.py')
)
PUBLISHED = json.loads(
    (ROOT / 'docs/results/published_reg_ptq.json').read_text()
)
TABLES = PUBLISHED['tables']
RETINANET = 'retinanet_r50_fpn_2x_coco'
FASTER_RCNN = 'faster-rcnn_r50_fpn_2x_coco'


@pytest.fixture(scope='module')
def configs():
    """All files, loaded."""
    with pytest.MonkeyPatch.context() as patch:
        # for each file it reads all metafiles of MMDetection anew
        patch.setattr(config_utils, 'load', functools.cache(config_utils.load))
        return {
            f.relative_to(CONFIGS).with_suffix('').as_posix(): (
                Config.fromfile(str(f))
            )
            for f in FILES
        }


def stems(folder):
    return {f.stem for f in CONFIGS.glob(f'{folder}/*.py')}


def test_every_row_has_its_file():
    assert stems('reg_ptq') == {
        f'{detector}_{bits}'
        for table in ('1', 'S1', 'S2', 'S3', 'S4')
        for method, bits, _ in TABLES[table]['rows']
        if method == 'Reg-PTQ'
        for detector in TABLES[table]['columns']
    }
    assert stems('fp_head') == set(TABLES['S1']['columns'])
    in_table_3 = {detector for detector, *_ in TABLES['3']['rows']}
    assert stems('llaq_heads') == in_table_3
    assert stems('uniform_heads') == in_table_3
    assert stems('thresholds') == {TABLES['2']['detector']}
    assert stems('_base_') == {*PUBLISHED['detectors'], 'reg_ptq'}
    others = {f.name for f in CONFIGS.iterdir()} - set(FOLDERS)
    assert others == set(RECIPES)


def test_every_file_is_valid(configs):
    for name, cfg in configs.items():
        assert cfg.runner_type == 'PTQRunner', name
        assert 'mmdet_ptq' in cfg.custom_imports.imports, name
        quant = parse_quant_cfg(cfg.quant_cfg.to_dict())
        assert quant.recipe == 'reg_ptq', name
        assert load_recipe(cfg.quant_cfg.recipe)['passes'], name
        assert quant.calibration.num_samples == 256, name
        last = quant.passes[-1]
        assert (last['iters'], last['batch_size']) == (2000, 2), name
        if name.startswith('reg_ptq/'):
            assert name.endswith(f'_{quant.bits}'), name
        if name.startswith('thresholds/'):
            assert str(quant.bits) == TABLES['2']['bits']


def test_every_file_is_of_the_detector_in_its_name(configs):
    kinds = {
        'retinanet': 'RetinaNet',
        'yolof': 'YOLOF',
        'faster-rcnn': 'FasterRCNN',
        'mask-rcnn': 'MaskRCNN',
        'detr': 'DETR',
    }
    for name, cfg in configs.items():
        kind, _, rest = Path(name).name.partition('_')
        if name == '_base_/reg_ptq':
            continue
        assert cfg.model.type == kinds[kind], name
        depth = 101 if rest.startswith('r101') else 50
        assert cfg.model.backbone.depth == depth, name
        if 'voc' in name:
            data = 'VOCDataset'
            head = cfg.model.get('roi_head', cfg.model).bbox_head
            assert head.num_classes == 20, name
        else:
            data = 'CocoDataset'
        assert cfg.test_dataloader.dataset.type == data, name
        assert ('2x' in name) == (cfg.train_cfg.max_epochs == 24), name


def test_every_method_can_be_chosen_by_its_name(configs):
    quant_cfg = configs[f'reg_ptq/{RETINANET}_w4a4'].quant_cfg.to_dict()
    for recipe in recipe_names():
        passes = load_recipe(recipe)['passes']
        if any(p['type'] == 'Reconstruct' for p in passes):
            quant = parse_quant_cfg(dict(quant_cfg, recipe=recipe))
            assert quant.passes[-1]['iters'] == 2000, recipe


@pytest.fixture(scope='module')
def plan_of(configs):
    """What each layer of a detector becomes under a config."""
    register_all_modules()

    def plan(name):
        # pretrained weights would be fetched by init_weights only
        model = MODELS.build(configs[name].model)
        quant = parse_quant_cfg(configs[name].quant_cfg.to_dict())
        (batch,) = noise_batches(1, (64, 64))
        session = prepare(model, quant, batch, Batches(model, [batch]))
        return session.plan.layers

    return plan


def kinds_of(plan, part):
    """Type of the weights' quantizer of each layer of a part."""
    return {
        name: p.weight.type if p.weight else None
        for name, p in plan.items()
        if name.startswith(part)
    }


PREDICTIONS = {
    'bbox_head.retina_cls',
    'bbox_head.retina_reg',
    'rpn_head.rpn_cls',
    'rpn_head.rpn_reg',
    'roi_head.bbox_head.fc_cls',
    'roi_head.bbox_head.fc_reg',
}


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        (f'reg_ptq/{RETINANET}_w2a4', 'LLAQuantizer'),
        (f'reg_ptq/{FASTER_RCNN}_w3a3', 'LLAQuantizer'),
        (f'uniform_heads/{RETINANET}', 'UniformQuantizer'),
        (f'fp_head/{FASTER_RCNN}', None),
    ],
)
def test_heads_get_what_the_table_says(plan_of, name, kind):
    plan = plan_of(name)
    for part in ('backbone', 'neck'):
        assert set(kinds_of(plan, part).values()) == {'UniformQuantizer'}
    found = kinds_of(plan, ('bbox_head', 'rpn_head', 'roi_head'))
    predictions = {n: k for n, k in found.items() if n in PREDICTIONS}
    assert set(predictions.values()) == {None} and len(predictions) >= 2
    others = {n: k for n, k in found.items() if n not in PREDICTIONS}
    assert set(others.values()) == {kind} and others
    floating = {n for n, p in plan.items() if p.why_float}
    assert floating == set(predictions if kind else found)


def test_local_loss_and_thresholds(configs):
    def losses(name):
        return parse_quant_cfg(configs[name].quant_cfg.to_dict()).passes[-1][
            'losses'
        ]

    # as in the recipe, without the loss on the detector's outputs
    fisher = losses(f'reg_ptq/{RETINANET}_w2a4')[0]
    assert fisher['type'] == 'FisherLoss'
    assert losses(f'llaq_heads/{RETINANET}') == [fisher]
    assert losses(f'uniform_heads/{RETINANET}') == [fisher]
    # what the commands of docs/reproduce.md change
    path = 'quant_cfg.pass_args.Reconstruct.losses'
    cfg = Config(configs[f'thresholds/{RETINANET}'].to_dict())
    cfg.merge_from_dict(
        {f'{path}.0.of.theta_c': 1e-2, f'{path}.1.theta_c': 1e-2}
    )
    local, whole = parse_quant_cfg(cfg.quant_cfg.to_dict()).passes[-1][
        'losses'
    ]
    assert local.pop('of') == whole
    assert local == fisher
    assert whole['theta_c'] == 1e-2 and whole['theta_i'] == 0.1
