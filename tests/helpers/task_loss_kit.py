# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges chosen by the outputs of a small detector."""

import torch
from reconstruct_model import RULES, Net, batches, outputs

from mmdet_ptq import quantize_detector
from mmdet_ptq.passes.task_loss import TaskPass
from mmdet_ptq.registry import PASSES

LP = dict(type='LpObserver', p=2.4)


def quantize(kind, bits='w3a3', observer=LP, then=(), **args):
    model, data = Net().eval(), batches()
    session = quantize_detector(
        model,
        data,
        dict(
            bits=bits,
            rules=RULES,
            passes=[
                dict(type='Observe', observer=observer),
                dict(type='SetRanges'),
                dict(type=kind, **args),
                *then,
            ],
        ),
    )
    return model, session


def loss(model):
    """What the passes minimise, on the images that they see."""
    data = batches()[:8]
    total = 0.0
    exact, found = outputs(Net().eval(), data), outputs(model, data)
    for i in range(0, len(exact), 2):
        pair = zip(exact[i : i + 2], found[i : i + 2], strict=True)
        errors = torch.cat([(x - y).square().flatten() for x, y in pair])
        total += float(errors.mean())
    return total / len(data)


def inside(look, **args):
    """What a function finds where ranges are chosen.

    Args:
        look (Callable): Given session and :class:`TaskLoss`.
        **args: Of the quantization.
    """
    found = []

    class Looking(TaskPass):
        def choose(self, session, task):
            found.append(look(session, task))

    PASSES.register_module(module=Looking, force=True)
    quantize('Looking', **args)
    return found[0]
