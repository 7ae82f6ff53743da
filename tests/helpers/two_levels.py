# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A small model whose head runs on two pyramid levels."""

import torch
from mmengine.model import BaseModel
from seeded import seeded
from torch import nn


class Tiny(BaseModel):
    """Two levels through one head; a side branch that tests skip."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, padding=1),
        )
        self.bbox_head = nn.Sequential(
            nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)
        )
        self.side = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.backbone[1].running_mean.normal_()
            self.backbone[1].running_var.uniform_(0.5, 2)
        # which tells the preprocessor
        self.to(torch.get_default_device())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)).float()
        x = self.backbone(x)
        levels = [x, 0.01 * x[..., ::2, ::2]]
        out = [self.bbox_head(level) for level in levels]
        if mode == 'tensor':
            return out, self.side(x).relu() @ torch.ones(8, 1)
        return out


def batches(n=4):
    generator = seeded(1)
    return [
        dict(
            inputs=[torch.randn(3, 8, 8, generator=generator)],
            data_samples=[None],
        )
        for _ in range(n)
    ]


RULES = [dict(match='*', weight=dict(granularity='channel'), act={})]
MINMAX = dict(type='MinMaxObserver')
PASSES = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=MINMAX),
    dict(type='SetRanges', weight_observer=MINMAX),
]


def inputs_of(model, name, data, mode):
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().clone())
    )
    with torch.no_grad():
        for batch in data:
            model(**batch, mode=mode)
    handle.remove()
    return seen
