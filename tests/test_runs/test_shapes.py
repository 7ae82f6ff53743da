# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors whose layers get maps without a batch axis, or no rows."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.layers import named_tensors

#: of recipes that learn
QUICK = dict(iters=8, distribution_correction=dict(iters=2))


class Maps(BaseModel):
    """Convolutions on (C, H, W) or, of the same numbers, (1, C, H, W)."""

    def __init__(self, batched):
        super().__init__()
        torch.manual_seed(0)
        self.batched = batched
        self.backbone = nn.Conv2d(3, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.tower = nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float()).relu()
        x = x if self.batched else x[0]
        x = self.grouped(x).relu()
        return [self.out(self.tower(self.up(x)).relu()).reshape(2, -1)]


def images(count=8):
    generator = torch.Generator().manual_seed(1)
    return [
        dict(
            # an image is not square: axes cannot be taken for each other
            inputs=[torch.randn(3, 5, 7, generator=generator)],
            data_samples=[None],
        )
        for _ in range(count)
    ]


def cfg_of(recipe, **args):
    cfg = dict(recipe=recipe, bits='w4a4', **args)
    if recipe not in ('minmax', 'uniform', 'lapq', 'det_ptq', 'q_yolo'):
        quick = dict(QUICK)
        if recipe != 'pd_quant':
            del quick['distribution_correction']
        cfg['pass_args'] = dict(Reconstruct=quick)
    return cfg


@pytest.mark.parametrize('recipe', ['uniform', 'qdrop', 'adaquant', 'reg_ptq'])
@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_a_missing_batch_axis_changes_nothing(recipe, granularity):
    rules = [dict(match='*', act=dict(granularity=granularity))]
    rules.append(dict(match='grouped', act=dict(granularity='group')))
    found, losses = [], []
    for batched in (True, False):
        model = Maps(batched).eval()
        session = quantize_detector(
            model, images(), cfg_of(recipe, rules=rules)
        )
        found.append(named_tensors(model))
        losses.append([record.to_dict() for record in session.records])
        for one in losses[-1]:
            one.pop('seconds', None)
    assert list(found[0]) == list(found[1])
    assert losses[0] == losses[1]
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor), name
