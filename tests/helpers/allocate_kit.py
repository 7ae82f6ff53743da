# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A small detector whose bits are allocated."""

import torch
from mmengine.model import BaseModel
from reconstruct_model import RULES, Net, batches
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.layers.matmul import MatMul
from mmdet_ptq.passes import AllocateBits, Observe
from mmdet_ptq.quant_cfg import parse_quant_cfg

IMAGES = 4
#: weights and inputs of Net but for the prediction, in execution order
LAYERS = [
    'backbone.0',
    'backbone.2.conv1',
    'backbone.2.conv2',
    'backbone.3.conv1',
    'backbone.3.conv2',
    'neck.0',
    'neck.1',
    'tower',
]


class Attention(BaseModel):
    """Queries, keys and values of the same tokens, and products."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 8, 4, 4)
        self.qkv = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.qk, self.pv = MatMul(), MatMul()
        self.out = nn.Linear(8, 4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        tokens = x.flatten(2).mT
        q, k, v = (
            part(tokens).unflatten(-1, (2, 4)).transpose(1, 2)
            for part in self.qkv
        )
        mixed = self.pv(self.qk(q, k.mT).softmax(-1), v)
        return [self.out(tokens + mixed.transpose(1, 2).flatten(2))]


def passes(**args):
    return [
        dict(type='Observe'),
        dict(type='AllocateBits', **args),
        dict(type='SetRanges'),
    ]


def allocated(bits='w4a4', rules=RULES, net=Net, data=None, **args):
    """Model and session of a whole quantization."""
    model = net().eval()
    cfg = dict(bits=bits, rules=rules, passes=passes(**args))
    return model, quantize_detector(model, data or batches(IMAGES), cfg)


def planned(bits='w4a4', rules=RULES, net=Net, data=None, **args):
    """Session before the first pass; what does not fit is refused."""
    model, data = net().eval(), data or batches(IMAGES)
    cfg = dict(bits=bits, rules=rules, passes=passes(**args))
    return prepare(model, parse_quant_cfg(cfg), data[0], Batches(model, data))


def observed(**args):
    """Session behind ``Observe``, and the pass that comes next."""
    session = planned(**args)
    Observe().run(session)
    session.state = {}  # as between two passes
    kinds = session.config.built_passes
    return session, next(p for p in kinds if isinstance(p, AllocateBits))


def of_kind(session, kind):
    return [r for r in session.records if isinstance(r, kind)]
