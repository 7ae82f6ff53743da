# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Random detectors that can be built anywhere, and their inputs."""

import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.models.backbones.trident_resnet import TridentConv
from torch import nn

from mmdet_ptq.testing import noise_batches, random_detector
from mmdet_ptq.testing.detectors import calm


def test_a_detector_that_distils_is_returned_too(tmp_path):
    """Its ``train`` and ``eval`` return None; its teacher is no file."""
    model = random_detector('mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py')
    assert isinstance(model, nn.Module) and not model.training


def test_samples_bring_boxes_only_where_asked():
    assert 'proposals' not in noise_batches(1, (64, 96))[0]['data_samples'][0]
    sample = noise_batches(1, (64, 96), 40)[0]['data_samples'][0]
    boxes = sample.proposals.bboxes
    assert boxes.shape == (40, 4) and len(boxes.unique(dim=0)) == 40
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
    assert (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()


def test_random_offsets_count_but_stay_below_a_pixel():
    torch.manual_seed(0)
    pack = ModulatedDeformConv2dPack(64, 8, 3, padding=1)
    model = nn.Sequential(pack)
    nn.init.kaiming_normal_(pack.conv_offset.weight)
    calm(model)
    offsets = pack.conv_offset(torch.randn(1, 64, 16, 16) + 1)
    assert 0.1 < offsets.std() < 1


def test_heads_start_as_mmdetection_starts_them():
    path = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    plain, started = random_detector(path), random_detector(path, heads=True)
    prior = started.bbox_head.retina_cls.bias.sigmoid()
    torch.testing.assert_close(prior, torch.full_like(prior, 0.01))
    assert plain.bbox_head.retina_cls.bias.unique().numel() > 1


def test_nothing_is_as_memory_happens_to_be():
    """Deformable DETR leaves the embedding of its levels uninitialised."""
    module = nn.Module()
    module.level_embed = nn.Parameter(torch.full((4, 256), float('nan')))
    calm(module)
    assert 0.8 < float(module.level_embed.std()) < 1.2


def test_weights_of_tridentnet_are_not_as_memory_happens_to_be():
    conv = TridentConv(64, 64, 3, [1, 2, 3])
    nn.init.constant_(conv.weight, float('nan'))
    calm(conv)
    # the power of a half-wave stays: 2 / (64 * 9)
    assert 0.055 < float(conv.weight.std()) < 0.063
