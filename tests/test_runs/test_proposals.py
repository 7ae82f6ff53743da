# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A detector of proposals, which have no class."""

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

RPN = """
_base_ = r'{base}'
model = dict(
    _delete_=True, type='RPN',
    data_preprocessor=_base_.preprocessor, backbone=_base_.backbone,
    neck=dict(
        type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
    rpn_head=dict(
        type='RPNHead', in_channels=16, feat_channels=16,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[1.0],
            strides=[4, 8, 16, 32]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss')),
    train_cfg=None, test_cfg=dict(rpn=dict(
        nms_pre=50, max_per_img=20, min_bbox_size=0,
        nms=dict(type='nms', iou_threshold=0.7))))
test_evaluator = dict(metric='proposal_fast', metric_items=None)
"""


def test_rpn_is_quantized_whatever_the_classes_of_the_data(
    ptq, tiny, tmp_path
):
    config, checkpoint = tmp_path / 'rpn.py', tmp_path / 'rpn.pth'
    config.write_text(RPN.replace('{base}', str(tiny.config['retinanet'])))
    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    # three classes in the data, one in the head
    assert model.bbox_head.num_classes == 1 != len(tiny.classes)
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    run = ptq(
        '--no-float-eval', '--calib-num', 2, config=config,
        checkpoint=checkpoint,
    )  # fmt: skip
    assert run.code == 0, run.err
    assert 'coco/AR@100' in run.result['quantized']
    again = ptq(config=config, checkpoint=run.artefact, work=tmp_path / 'b')
    assert again.code == 0, again.err
