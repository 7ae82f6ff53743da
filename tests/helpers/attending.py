# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A model of one attention, and images for it."""

import torch
from mmengine.model import BaseModel
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.quant_cfg import load_recipe

BASE = load_recipe('uniform')


class Attending(BaseModel):
    """Attention, and a product of a softmax as its second operand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.last = nn.Linear(16, 4)
        self.to(torch.get_default_device())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.first(torch.stack(list(inputs)).float())
        x = x.flatten(2).transpose(1, 2)
        return self.last(x + self.attention(x, x, x)[0])


def batches(count=4):
    rng = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[0.3 * torch.randn(3, 32, 32, generator=rng)],
            data_samples=[None],
        )
        for _ in range(count)
    ]


def quantized(*passes, bits='w8a4', rules=BASE['rules']):
    model = Attending().eval()
    session = quantize_detector(
        model,
        batches(),
        dict(
            bits=bits,
            rules=rules,
            passes=[*passes, *BASE['passes']],
        ),
    )
    return model, session
