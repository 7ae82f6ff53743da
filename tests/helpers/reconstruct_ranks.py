# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Reconstructions on one rank of several, started by test_ranks.py.

``python reconstruct_ranks.py RANK WORLD MEETING_FILE RESULT_FILE``
"""

import copy
import sys
import warnings
from datetime import timedelta

import torch
from reconstruct_model import INIT, RULES, Net, batches
from seeded import seeded
from torch import nn

from mmdet_ptq.calibration import Feed
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.quant_cfg import parse_quant_cfg

LEARN = [dict(type='AdaRound'), dict(type='LearnedSteps')]
LOSSES = [
    dict(type='L2Loss'),
    dict(type='FisherLoss'),
    dict(type='DetectionLoss'),
]


class OnWide(nn.Module):
    """A convolution that narrow images do not meet."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x) if x.shape[-1] > 12 else x


class Branching(Net):
    def __init__(self):
        super().__init__()
        self.backbone.append(OnWide())


def narrow_and_wide():
    """Twelve images; two of odd numbers are wide, one of them held out."""
    generator = seeded(2)
    widths = [16 if i in (3, 7) else 12 for i in range(12)]
    return [
        dict(
            inputs=[torch.randn(3, 12, w, generator=generator)],
            data_samples=[None],
        )
        for w in widths
    ]


class Store:
    """Remembers everything that was saved."""

    def __init__(self, saved=None):
        self.saved = saved
        self.history = []

    def load(self):
        return copy.deepcopy(self.saved)

    def save(self, progress):
        self.history.append(copy.deepcopy(progress))


class Share(Feed):
    """This rank's images; those that are None cannot be read."""

    def __init__(self, model, data, rank, world):
        self.model = model
        self.data = data[rank::world]

    @property
    def total(self):
        return len(self.data)

    def batch(self, i):
        data = self.data[i]
        return None if data is None else dict(data)

    def run_raw(self, count):
        raise AssertionError('every layer has data')

    def predict(self, start=0, after=lambda _: None):
        for i in range(start, self.total):
            if self.data[i] is not None:
                self.model(**self.data[i])
            after(i)


def run(rank, world, data, model=None, store=None, resume=False, **args):
    """Quantizes with four images in a step of all ranks together."""
    args = dict(dict(learn=LEARN, drop_prob=0.5, iters=5), **args)
    args['batch_size'] = 4 // world
    then = dict(type='Reconstruct', **args)
    return quantize(rank, world, data, then, model, store, resume)


def quantize(rank, world, data, then, model=None, store=None, resume=False):
    """Quantizes with a last pass."""
    model = (model or Net()).eval()
    config = parse_quant_cfg(
        dict(
            bits='w3a4',
            rules=RULES,
            passes=[*INIT, then],
        )
    )
    example = max(
        (d for d in data if d is not None),
        key=lambda d: d['inputs'][0].numel(),
    )
    session = run_quantization(
        model,
        config,
        example,
        Share(model, data, rank, world),
        store=store,
        resume=resume,
    )
    records = [
        {k: v for k, v in r.to_dict().items() if k != 'seconds'}
        for r in session.records
    ]
    return dict(
        records=records,
        notes=list(session.notes),
        tensors={n: t.clone() for n, t in named_tensors(model).items()},
    )


def everything(rank, world):
    """All situations, by name."""
    broken = batches(5)
    broken[2] = None
    history = Store()
    found = dict(
        unreadable=run(rank, world, broken, losses=LOSSES),
        few=run(rank, world, batches(1), losses=LOSSES, iters=2),
        some=run(rank, world, narrow_and_wide(), Branching(), iters=10),
        some_global=run(
            rank, world, narrow_and_wide(), Branching(), losses=LOSSES
        ),
        whole=run(rank, world, batches(5), store=history),
    )
    then = dict(type='CompensateRounding', rows=40)
    found.update(
        rounded=quantize(rank, world, batches(5), then),
        rounded_some=quantize(
            rank, world, narrow_and_wide(), then, Branching()
        ),
        rounded_few=quantize(rank, world, batches(1), then),
    )
    # rank 0 has saved one unit more than the others when the kill came;
    # the first save is that of the ranges
    for name, first in (('apart', 3), ('before', 2), ('same', 3)):
        behind = name != 'same' and rank > 0
        found[name] = run(
            rank,
            world,
            batches(5),
            store=Store(history.history[first - 1 - behind]),
            resume=True,
        )
    return found


def main():
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'file://{sys.argv[3]}',
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    torch.save(everything(rank, world), sys.argv[4])
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
