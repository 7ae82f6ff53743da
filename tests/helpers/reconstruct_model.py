# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A detector of residual blocks, a pyramid of two levels and one head."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from seeded import drawn
from torch import nn
from torch.utils._pytree import tree_flatten

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.passes.reconstruct import Reconstruct
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.records import UnitRecord
from mmdet_ptq.registry import PASSES


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.conv1(x))) + x)


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        with torch.device('cpu'):  # the same numbers on every device
            self.backbone = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Block(), Block()
            )
            self.neck = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
            self.tower = nn.Conv2d(8, 8, 3, padding=1)
            self.out = nn.Conv2d(8, 4, 1)
        # which tells the preprocessor
        self.to(torch.get_default_device())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        fine, coarse = self.neck[0](x), self.neck[1](x[..., ::2, ::2])
        up = nn.functional.interpolate(coarse, scale_factor=2)
        return [self.out(self.tower(f).relu()) for f in (fine + up, coarse)]


def batches(count=16):
    generator = torch.Generator().manual_seed(1)

    def image(i):
        return torch.randn(3, 12, 12 + 4 * (i % 2), generator=generator)

    return [
        dict(
            inputs=[drawn(lambda i=i: image(i))],
            data_samples=[None],
        )
        for i in range(count)
    ]


RULES = [
    dict(match='*', weight=dict(granularity='channel'), act={}),
    dict(match='out', skip=True),
]
INIT = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe'),
    dict(type='SetRanges'),
    dict(type='CorrectBias'),
]


LEARN = [dict(type='AdaRound'), dict(type='LearnedSteps')]
BLOCK = 'backbone.2'
UNITS = ['backbone.0', BLOCK, 'backbone.3', 'neck.0', 'neck.1', 'tower']
#: one on a unit's outputs, one on the detector's
LOSSES = [dict(type='L2Loss'), dict(type='DetectionLoss')]


def pass_with(trainer):
    """Name of a registered pass that fits its units otherwise."""
    if trainer is Trainer:
        return 'Reconstruct'
    kind = type('ReconstructOtherwise', (Reconstruct,), dict(trainer=trainer))
    PASSES.register_module(module=kind, force=True)
    return kind.__name__


def reconstruct(
    data=None,
    bits='w3a4',
    calibration=None,
    init=INIT,
    net=Net,
    rules=RULES,
    trainer=Trainer,
    **args,
):
    """Quantizes a new network; gives model and session."""
    args.setdefault('learn', [dict(type='AdaRound')])
    args.setdefault('iters', 40)
    model = net().eval()
    session = quantize_detector(
        model,
        data or batches(),
        dict(
            bits=bits,
            rules=rules,
            passes=[*init, dict(type=pass_with(trainer), **args)],
            calibration=calibration or {},
        ),
    )
    return model, session


def inside(look, only=BLOCK, **args):
    """Calls a function where a unit would be learned; learns nothing."""
    found = {}

    class Looking(Trainer):
        def fit(self, learners, acts, k):
            name = self.view.name
            if only in (None, name):
                found[name] = look(self, learners, acts, k)
            return UnitRecord(name, 0.0, 0.0, True)

    reconstruct(trainer=Looking, **args)
    assert found
    return found if only is None else found[only]


def outputs(model, data):
    with torch.no_grad():
        return [t for batch in data for t in model(**batch)]


def error(model, data):
    exact = outputs(Net().eval(), data)
    return sum(
        float((a - b).square().sum())
        for a, b in zip(exact, outputs(model, data), strict=True)
    )


def flat(outputs):
    """The tensors of a nested value."""
    found = [t for t in tree_flatten(outputs)[0] if torch.is_tensor(t)]
    assert found
    return found


def equal(a, b):
    ours, theirs = named_tensors(a), named_tensors(b)
    return list(ours) == list(theirs) and all(
        torch.equal(ours[n], theirs[n]) for n in ours
    )


class Store:
    """Keeps progress like the file on disk does."""

    def __init__(self, stop_at=None):
        self.saved = None
        self.count = 1
        self.stop_at = stop_at
        self.models = []

    def load(self):
        return copy.deepcopy(self.saved)

    def save(self, progress):
        self.saved = copy.deepcopy(progress)
        parts = (progress.get('state'), progress.get('finished'))
        self.models.append(sum('tensors' in (part or {}) for part in parts))
        # those before the units count as one
        self.count += 'units' in progress.get('state', {})
        if self.count == self.stop_at:
            raise KeyboardInterrupt


def stopped_and_resumed(
    stop_at, net=Net, data=None, again=(), kind='Reconstruct', **args
):
    """Stops at a write of the resume file, then goes on; None: at none.

    The first write is that of the ranges, the others are units. ``again``
    are writes at which what goes on is stopped as well.
    """
    config = parse_quant_cfg(
        dict(
            bits='w3a4',
            rules=RULES,
            passes=[*INIT, dict(type=kind, **args)],
        )
    )

    given = data or batches()

    def run(resume):
        model, data = net().eval(), list(given)
        session = run_quantization(
            model,
            config,
            data[0],
            Batches(model, data),
            store=store,
            resume=resume,
        )
        return model, session, store

    store = Store(stop_at)
    if stop_at is None:
        return run(False)
    with pytest.raises(KeyboardInterrupt):
        run(False)
    assert store.saved['state']['units'] == stop_at - 1
    for store.stop_at in again:
        with pytest.raises(KeyboardInterrupt):
            run(True)
    store.stop_at = None
    return run(True)
