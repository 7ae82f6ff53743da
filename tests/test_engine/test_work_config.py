# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The config in a work dir."""

from mmcv.ops import DeformConv2dPack, RoIAlign, nms
from mmdet.models import RetinaNet
from mmengine.config import Config
from new_style import write_new_style

from mmdet_ptq.engine.work_config import import_package, work_config


class Holder:
    class Part:
        pass


def test_objects_become_names(tmp_path):
    """Also those that a program puts into a config."""
    cfg = Config(
        dict(
            model=dict(
                type=RetinaNet,
                nms=dict(type=nms),
                layers=({'type': RoIAlign},),
                conv=dict(type=DeformConv2dPack),
                own=Holder.Part,
                text='mmcv',
            )
        )
    )
    path = tmp_path / 'config.py'
    work_config(cfg).dump(path)
    found = Config.fromfile(path)
    assert found.model.to_dict() == dict(
        type='QuantizableDetector',
        detector_type='mmdet.models.detectors.retinanet.RetinaNet',
        nms=dict(type='nms'),
        layers=({'type': 'RoIAlign'},),
        # a registry finds a class by its path; by name this one is 'DCN'
        conv=dict(type='mmcv.ops.deform_conv.DeformConv2dPack'),
        own=f'{__name__}.Holder.Part',
        text='mmcv',
    )
    assert found.runner_type == 'PTQRunner'
    assert found.custom_imports.imports == ['mmdet_ptq']
    assert 'runner_type' not in cfg and cfg.model.type is RetinaNet


def test_new_style(tmp_path):
    cfg = Config.fromfile(write_new_style(tmp_path, tmp_path, ('a', 'b')))
    path = tmp_path / 'written.py'
    work_config(cfg).dump(path)
    model = Config.fromfile(path).model
    assert model.detector_type == 'mmdet.models.FasterRCNN'
    assert model.test_cfg.rcnn.nms.type == 'nms'
    assert model.roi_head.bbox_roi_extractor.roi_layer.type == 'RoIAlign'
    assert model.backbone.norm_cfg.type == 'torch.nn.BatchNorm2d'


def test_imports_are_kept():
    cfg = Config(dict(custom_imports=dict(imports='mine')))
    for _ in range(2):
        import_package(cfg)
    assert cfg.custom_imports == dict(
        imports=['mine', 'mmdet_ptq'], allow_failed_imports=False
    )
