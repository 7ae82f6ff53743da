# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One layer of every kind, and its twin."""

import copy

import torch
from mmcv.cnn.bricks import wrappers
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
)
from torch import nn

from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import UniformQuantizer


def conv_inputs(channels=8):
    return (torch.randn(2, channels, 9, 11),)


def deform_inputs(mask):
    x = torch.randn(1, 8, 9, 11)
    extra = (torch.randn(1, 18, 9, 11),)
    return (x, *extra, torch.rand(1, 9, 9, 11)) if mask else (x, *extra)


LAYERS = {
    'conv': (nn.Conv2d(8, 6, 3, padding=1), conv_inputs()),
    'conv_dilated': (nn.Conv2d(8, 6, 3, 2, 2, 2, bias=False), conv_inputs()),
    'conv_grouped': (nn.Conv2d(8, 4, 3, groups=2), conv_inputs()),
    'conv_depthwise': (nn.Conv2d(8, 16, 3, groups=8), conv_inputs()),
    'conv_reflect': (
        nn.Conv2d(8, 6, 3, padding=1, padding_mode='reflect'),
        conv_inputs(),
    ),
    'conv_mmcv': (wrappers.Conv2d(8, 6, 1), conv_inputs()),
    'deconv': (nn.ConvTranspose2d(8, 6, 2, 2), conv_inputs()),
    'deconv_grouped': (nn.ConvTranspose2d(8, 6, 3, groups=2), conv_inputs()),
    'deconv_mmcv': (wrappers.ConvTranspose2d(8, 6, 2), conv_inputs()),
    'linear': (nn.Linear(8, 5), (torch.randn(3, 7, 8),)),
    'linear_mmcv': (wrappers.Linear(8, 5), (torch.randn(3, 8),)),
    'deform': (DeformConv2d(8, 4, 3, padding=1), deform_inputs(False)),
    'deform_v2': (
        ModulatedDeformConv2d(8, 4, 3, padding=1),
        deform_inputs(True),
    ),
    'deform_pack': (DeformConv2dPack(8, 4, 3, padding=1), conv_inputs()),
    'deform_v2_pack': (
        ModulatedDeformConv2dPack(8, 4, 3, padding=1),
        conv_inputs(),
    ),
}
# layers of MMCV do not know the default device
for _layer, _ in LAYERS.values():
    _layer.to(torch.get_default_device())


def twin_of(layer):
    model = nn.ModuleDict(dict(layer=copy.deepcopy(layer)))
    convert(model)
    return model['layer']


def quantizer(role, x, axis, bits=4, granularity='tensor'):
    q = UniformQuantizer(bits, granularity=granularity, axis=axis, role=role)
    rows = q.granularity.rows(x)
    q.set_range(rows.amin(1), rows.amax(1))
    return q


def attach(twin, x):
    twin.attach(
        quantizer(
            'weight', twin.weight, twin.weight_axis, granularity='channel'
        ),
        dict(input=quantizer('act', x, twin.act_axis)),
    )
