# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A model of one residual block that scores, and images for it."""

from contextlib import contextmanager

import torch
from mmengine.model import BaseModel
from torch import nn

from mmdet_ptq.detectors import Adapter
from mmdet_ptq.registry import ADAPTERS
from mmdet_ptq.structures import DetectionOutputs


class ScoresHead(nn.Linear):
    """Gives logits of three classes."""


class Block(nn.Module):
    """Two layers, a nonlinearity and a skip."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 6)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


class Scoring(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 6)
        self.backbone = nn.Sequential(Block())
        self.bbox_head = ScoresHead(6, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)).float()
        x = self.stem(x.flatten(1, -2))
        return self.bbox_head(self.backbone(x))


@contextmanager
def scores_adapter():
    """While it is entered, logits are outputs that losses compare."""

    class ScoresAdapter(Adapter):
        heads = (ScoresHead,)

        def outputs(self, model, batch, anchor):
            logits = model(batch['inputs'])
            return [
                DetectionOutputs('bbox_head', one, 'sigmoid') for one in logits
            ]

    ADAPTERS.register_module(module=ScoresAdapter)
    try:
        yield
    finally:
        ADAPTERS.module_dict.pop('ScoresAdapter')


def batches(count=3):
    rng = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[torch.randn(1, 5, 6, generator=rng) * (i + 1)],
            data_samples=[None],
        )
        for i in range(count)
    ]
