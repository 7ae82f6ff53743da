# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Outputs of heads, written down."""

import math

import torch
from seeded import seeded

from mmdet_ptq.structures import DetectionOutputs

LOG2, LOG3 = math.log(2), math.log(3)


def tens(boxes, rows):
    """Decodes: ten pixels a unit, shifted by the row."""
    return boxes * 10 + rows[:, None].to(boxes)


def head(logits, boxes=None, activation='sigmoid', **kwargs):
    kwargs.setdefault('name', 'bbox_head')
    if boxes is not None:
        boxes = torch.as_tensor(boxes, dtype=torch.float32)
        kwargs.setdefault('decode', tens)
    logits = torch.as_tensor(logits, dtype=torch.float32)
    if activation == 'softmax':
        kwargs.setdefault('background', logits.shape[1] - 1)
    return DetectionOutputs(
        logits=logits, activation=activation, boxes=boxes, **kwargs
    )


def random_head(seed, activation, classes=3, name='bbox_head', k=None):
    generator = seeded(seed)
    count = 40
    logits = torch.randn(count, classes + (activation == 'softmax'))
    logits = 4 * torch.empty_like(logits).normal_(generator=generator) - 3
    shape = (count, 4) if k is None else (count, k, 4)
    corner = torch.rand(shape, generator=generator)
    boxes = corner.clone()
    boxes[..., 2:] = corner[..., :2] + 0.3 + corner[..., 2:]
    levels = torch.arange(count) // 15
    return head(logits, boxes, activation, name=name, levels=levels)


def perturbed(output, seed=9):
    generator = seeded(seed)
    noise = torch.empty_like(output.logits).normal_(generator=generator)
    shift = torch.empty_like(output.boxes).normal_(generator=generator)
    return DetectionOutputs(
        **{
            **vars(output),
            'logits': (output.logits + noise).requires_grad_(),
            'boxes': (output.boxes + 0.3 * shift).requires_grad_(),
        }
    )
