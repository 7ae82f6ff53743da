# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Two tiny detectors with data and checkpoints, quantized in a second."""

import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

# MMEngine keeps loggers for the life of a process; pytest closes the
# streams they were made with, and logging would print a traceback each time
logging.raiseExceptions = False

ROOT = Path(__file__).resolve().parent.parent
#: fixtures of whole runs
RUNS = {'environment', 'ptq'}
#: folders whose tests run where --device says
ON_DEVICE = {
    'test_calibration',
    'test_layers',
    'test_observers',
    'test_passes',
    'test_quantizers',
}
CLASSES = ('dark', 'grey', 'light')

COMMON = """
_base_ = 'mmdet::_base_/default_runtime.py'
classes = {classes}
pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                    'scale_factor')),
]


def part(name):
    return dict(
        batch_size=1, num_workers=0, persistent_workers=False,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CocoDataset', data_root=r'{root}/',
            ann_file=name + '.json', data_prefix=dict(img=name + '/'),
            metainfo=dict(classes=classes), test_mode=True,
            pipeline=pipeline))


train_dataloader = part('train')
test_dataloader = part('val')
test_cfg = dict(type='TestLoop')
test_evaluator = dict(
    type='CocoMetric', ann_file=r'{root}/val.json', metric={metric},
    metric_items=['mAP', 'mAP_50', 'AR@300', 'AR_s@1000'])
val_cfg = val_dataloader = val_evaluator = None
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=.01))
# every image is a point to resume from
custom_hooks = [dict(type='CalibrationHook', save_interval=0)]
custom_imports = dict(imports=['mmdet_ptq'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
preprocessor = dict(
    type='DetDataPreprocessor', mean=[120., 120., 120.], std=[60., 60., 60.],
    bgr_to_rgb=False, pad_size_divisor=32)
backbone = dict(
    type='ResNet', depth=18, base_channels=8, num_stages=4,
    out_indices=(0, 1, 2, 3), norm_cfg=dict(type='BN'), style='pytorch')
"""

RETINANET = (
    COMMON
    + """
model = dict(
    type='RetinaNet', data_preprocessor=preprocessor, backbone=backbone,
    neck=dict(
        type='FPN', in_channels=[8, 16, 32, 64], out_channels=16,
        start_level=1, add_extra_convs='on_input', num_outs=4),
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=16, stacked_convs=1,
        feat_channels=16,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=2, scales_per_octave=1,
            ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.],
            target_stds=[1., 1., 1., 1.]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss')),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4,
            min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        # so many boxes that random weights score above zero
        nms_pre=300, min_bbox_size=0, score_thr=0.0,
        nms=dict(type='nms', iou_threshold=0.7), max_per_img=300))
"""
)

MASK_RCNN = (
    COMMON
    + """
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(preprocessor, pad_mask=True), backbone=backbone,
    neck=dict(
        type='FPN', in_channels=[8, 16, 32, 64], out_channels=16,
        num_outs=4),
    rpn_head=dict(
        type='RPNHead', in_channels=16, feat_channels=16,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss')),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=16,
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            featmap_strides=[4, 8, 16]),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=32,
            roi_feat_size=7, num_classes=3,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=dict(type='L1Loss')),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=16,
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            featmap_strides=[4, 8, 16]),
        mask_head=dict(
            type='FCNMaskHead', num_convs=1, in_channels=16,
            conv_out_channels=16, num_classes=3, roi_feat_size=7,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True))),
    train_cfg=None,
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=60, min_bbox_size=0,
                 nms=dict(type='nms', iou_threshold=0.8)),
        rcnn=dict(score_thr=0.0, max_per_img=60, mask_thr_binary=0.5,
                  nms=dict(type='nms', iou_threshold=0.7))))
"""
)


def pytest_addoption(parser):
    parser.addoption(
        '--device',
        default='cpu',
        help='where tests make tensors and models: cpu, or cuda for '
        f'{", ".join(sorted(ON_DEVICE))}',
    )


def pytest_configure(config):
    """New tensors are made on the device; kits make some when imported."""
    device = config.getoption('--device')
    if torch.device(device).type == 'cpu':
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError(
            f'--device {device}: PyTorch sees no GPU here; leave it out'
        )
    torch.set_default_device(device)
    # convolutions of a GPU drop half of the digits that tests compare
    torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(config, items):
    """Whole runs come after what tests single parts.

    What needs a GPU is skipped where there is none, and what makes tensors
    on the CPU is skipped on another device.
    """
    device = config.getoption('--device')
    for item in items:
        if item.get_closest_marker('gpu'):
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason='no GPU here'))
        elif device != 'cpu' and ON_DEVICE.isdisjoint(item.path.parts):
            reason = f'runs on a CPU only: leave out --device {device}'
            item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(
        key=lambda item: (
            'test_runs' in item.path.parts
            or not RUNS.isdisjoint(item.fixturenames)
        )
    )


def make_images(root, name, count, seed):
    """Rectangles of three brightnesses on noise, with COCO annotations."""
    rng = np.random.default_rng(seed)
    (root / name).mkdir()
    images, boxes = [], []
    for i in range(count):
        image = rng.integers(90, 150, (64, 64, 3), dtype=np.uint8)
        images.append(dict(id=i, file_name=f'{i}.png', width=64, height=64))
        for _ in range(3):
            x, y = (int(v) for v in rng.integers(0, 36, 2))
            w, h = (int(v) for v in rng.integers(10, 28, 2))
            kind = int(rng.integers(3))
            image[y : y + h, x : x + w] = (20, 128, 235)[kind]
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            boxes.append(
                dict(
                    id=len(boxes) + 1,
                    image_id=i,
                    category_id=kind + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[corners],
                )
            )
        cv2.imwrite(str(root / name / f'{i}.png'), image)
    (root / f'{name}.json').write_text(
        json.dumps(
            dict(
                images=images,
                annotations=boxes,
                categories=[
                    dict(id=i + 1, name=n) for i, n in enumerate(CLASSES)
                ],
            )
        )
    )


def make_checkpoint(config, path):
    """Seeded random weights whose batch norms know their inputs."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    model.train()
    model.backbone.norm_eval = False
    with torch.no_grad():
        for _ in range(4):
            model.backbone(torch.randn(2, 3, 64, 64))
        for name, value in model.named_parameters():
            # scores and boxes that differ from place to place
            if name.endswith(
                (
                    'retina_cls.weight',
                    'retina_reg.weight',
                    'fc_cls.weight',
                    'fc_reg.weight',
                    'rpn_cls.weight',
                    'conv_logits.weight',
                )
            ):
                value.mul_(3)
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(dataset_meta=dict(classes=CLASSES)),
        ),
        path,
    )


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """Paths of configs, checkpoints and data; do not change the files."""
    root = tmp_path_factory.mktemp('tiny')
    make_images(root, 'train', 6, 0)
    make_images(root, 'val', 4, 1)
    found = SimpleNamespace(
        root=root, config={}, checkpoint={}, classes=CLASSES
    )
    for name, text, metric in (
        ('retinanet', RETINANET, "'bbox'"),
        ('mask_rcnn', MASK_RCNN, "['bbox', 'segm']"),
    ):
        config = root / f'{name}.py'
        text = (
            text.replace('{classes}', repr(CLASSES))
            .replace('{root}', str(root))
            .replace('{metric}', metric)
        )
        if name == 'mask_rcnn':
            text = text.replace('with_bbox=True', 'with_mask=True')
        config.write_text(text)
        found.config[name] = config
        found.checkpoint[name] = root / f'{name}.pth'
        make_checkpoint(config, found.checkpoint[name])
    return found


@pytest.fixture
def ptq(tiny, tmp_path, capsys):
    """Runs ``mmdet-ptq quantize`` in this process.

    Returns:
        Callable: ``ptq(*arguments, model=, config=, checkpoint=, work=)``
        gives exit code, terminal text, work dir, result and artefact hash.
    """

    from mmdet_ptq.cli import main

    def run(
        *arguments, model='retinanet', config=None, checkpoint=None, work=None
    ):
        config = config or tiny.config[model]
        checkpoint = checkpoint or tiny.checkpoint[model]
        work = Path(work or tmp_path / 'work')
        words = [config, checkpoint, '--work-dir', work, '--device', 'cpu']
        capsys.readouterr()
        code = main(['quantize', *map(str, [*words, *arguments])])
        said = capsys.readouterr()
        return outcome(code, work, said.out, said.err)

    return run


def outcome(code, work, out='', err=''):
    """What a run left behind."""
    artefact, result = work / 'quantized.pth', work / 'ptq_result.json'
    found = SimpleNamespace(
        code=code,
        work=work,
        out=out,
        err=err,
        artefact=artefact,
        digest=None,
        result=None,
        log='',
    )
    if artefact.is_file():
        found.digest = hashlib.sha256(artefact.read_bytes()).hexdigest()
    if result.is_file():
        found.result = json.loads(result.read_text())
    if work.is_dir():
        logs = sorted(work.glob('*/*.log'), key=lambda p: p.stat().st_mtime)
        found.log = logs[-1].read_text() if logs else ''
    return found


@pytest.fixture(scope='session')
def look_at():
    """:func:`outcome`, for runs in other processes."""
    return outcome


@pytest.fixture(scope='session')
def environment():
    """Variables for subprocesses: one thread, this source tree."""
    import os

    return dict(
        os.environ,
        OMP_NUM_THREADS='1',
        PYTHONPATH=str(ROOT),
        PYTHONWARNINGS='ignore',
    )


@pytest.fixture(autouse=True, scope='session')
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
