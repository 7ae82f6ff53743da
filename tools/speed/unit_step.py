# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Times a step of QDrop on one unit, beside the unit's own work.

``python -m tools.speed.unit_step --device cuda`` prints, and writes to
``--out``, milliseconds of a step and of forward and backward of the float
unit on the same images, and the hours that 33 units of 2000 steps take.
"""

import argparse
import json
import statistics
import warnings
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch

from mmdet_ptq import quantize_detector
from mmdet_ptq.context import forward_context
from mmdet_ptq.engine.machine import machine_line
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.quant_cfg import load_recipe
from mmdet_ptq.records import UnitRecord
from mmdet_ptq.registry import PASSES
from mmdet_ptq.testing import (
    noise_batches,
    random_detector,
    settle_batch_norms,
)
from tools.speed.device import now, peak_mb
from tools.speed.steps import ReconstructChosen, pull

CONFIG = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


class SteppedTrainer(Trainer):
    """Notes when steps begin, and times the float unit afterwards."""

    stamps: ClassVar[list[float]] = []
    plain: ClassVar[list[float]] = []

    def step(self, *args: Any) -> Any:
        """One step, after all before it is done."""
        self.stamps.append(now(self.session.device.type))
        return super().step(*args)

    def fit(self, learners: list[Any], acts: list[Any], k: int) -> UnitRecord:
        """As the trainer's; the float unit runs as often as a batch."""
        record = super().fit(learners, acts, k)
        device = self.session.device.type
        train, _ = self.split()
        for i in range(len(self.stamps)):
            start = now(device)
            for slot in range(self.settings.batch_size):
                self._float(train[(i + slot) % len(train)])
            self.plain.append(now(device) - start)
        return record

    def _float(self, j: int) -> None:
        """Forward and backward of the float unit on one image."""
        sample = self.samples[j]
        weights = [m.weight for m in self.view.layers.values()]
        with (
            torch.enable_grad(),
            float_mode(self.images.model),
            forward_context(sample.images),
        ):
            for weight in weights:
                weight.requires_grad_(True)
            for i, levels in enumerate(sample.levels):
                inputs = self.images.cache.fetch(sample.inputs[i])
                pull(self.view(levels, inputs), weights)
        for weight in weights:
            weight.requires_grad_(False)


@PASSES.register_module()
class ReconstructStepped(ReconstructChosen):
    """Reconstructs one unit with :class:`SteppedTrainer`."""

    trainer = SteppedTrainer


def main() -> int:
    """Prints and writes the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--unit', default='backbone.layer1.1')
    parser.add_argument('--size', type=int, nargs=2, default=[800, 1216])
    parser.add_argument('--images', type=int, default=4)
    parser.add_argument('--iters', type=int, default=40)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--cache', default='8GiB')
    parser.add_argument('--out')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    ReconstructStepped.pick = staticmethod(lambda units: [args.unit])
    passes = [
        {**one, 'type': 'ReconstructStepped', 'iters': args.iters}
        if one['type'] == 'Reconstruct'
        else one
        for one in load_recipe('qdrop')['passes']
    ]
    model = random_detector(CONFIG).to(args.device)
    data = noise_batches(args.images, tuple(args.size))
    settle_batch_norms(model, data[:2])
    calibration = dict(num_samples=args.images, cache=args.cache)
    cfg = dict(
        recipe='qdrop', bits='w4a4', passes=passes, calibration=calibration
    )
    session = quantize_detector(model, data, cfg)
    stamps = SteppedTrainer.stamps[5:]
    steps = [b - a for a, b in pairwise(stamps)]
    step = statistics.median(steps)
    plain = statistics.median(SteppedTrainer.plain[5:])
    found = dict(
        command='python -m tools.speed.unit_step',
        settings={k: v for k, v in vars(args).items() if k != 'out'},
        machine=machine_line(args.device),
        date=str(date.today()),
        step_ms=round(step * 1e3, 2),
        float_unit_ms=round(plain * 1e3, 2),
        over_float=round(step / plain, 3),
        hours_33_units_2000_steps=round(step * 33 * 2000 / 3600, 3),
        calibration_s=round(session.seconds['calibration'], 2),
        **peak_mb(args.device),
    )
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + '\n')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
