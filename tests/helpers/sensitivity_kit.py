# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Small networks at the point at which sensitivity is measured."""

import torch
from mmengine.model import BaseModel
from reconstruct_model import RULES, Net, batches
from torch import nn

from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.quant_cfg import parse_quant_cfg

INIT = [dict(type='Observe'), dict(type='SetRanges'), dict(type='CorrectBias')]


class Attentive(BaseModel):
    """A convolution, an attention with two inputs, and a prediction."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        with torch.device('cpu'):  # the same numbers on every device
            self.backbone = nn.Conv2d(3, 8, 3, padding=1)
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
            self.out = nn.Linear(8, 4)
            self.register_buffer('place', torch.randn(144, 8))
        # which tells the preprocessor
        self.to(torch.get_default_device())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float()[..., :12, :12])
        x = x.flatten(2).mT
        y, _ = self.attn(x + self.place, x + self.place, x)
        return [self.out(x + y)]


def at_the_end(
    look, net=Net, bits='w4a4', rules=RULES, passes=INIT, count=4, **cfg
):
    """What a function finds after the last pass, before weights are baked.

    Args:
        look (Callable): Given the session.
        net (Callable): Makes the model.
        bits (str): Widths.
        rules (list[dict]): Rules.
        passes (list[dict]): Passes.
        count (int): How many batches calibrate.
        **cfg: Further keys of ``quant_cfg``.
    """
    model, data = net().eval(), batches(count)
    found = []
    config = parse_quant_cfg(
        dict(bits=bits, rules=rules, passes=passes, **cfg)
    )
    run_quantization(
        model,
        config,
        data[0],
        Batches(model, data),
        before_freeze=lambda session: found.append(look(session)),
    )
    return found[0]
