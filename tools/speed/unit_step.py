# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Times a step of QDrop on one unit, beside the unit's own work.

``python -m tools.speed.unit_step --device cuda`` prints, and writes to
``--out``, milliseconds of a step with some batch sizes, of forward and
backward of the float unit and of the float detector down to the unit on as
many images, and the hours that 33 units of 2000 steps take.
``python -m tools.speed.benchmark --step-batches 2 4 32`` has them in its
file.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmdet_ptq import quantize_detector
from mmdet_ptq.context import forward_context
from mmdet_ptq.engine.machine import machine_line
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.quant_cfg import load_recipe
from mmdet_ptq.records import UnitRecord
from mmdet_ptq.registry import PASSES
from mmdet_ptq.structures import DetectionOutputs
from mmdet_ptq.testing import (
    noise_batches,
    random_detector,
    settle_batch_norms,
)
from tools.speed.device import (
    add_device,
    add_size,
    check_device,
    forget_peak,
    now,
    peak_mb,
    sides,
    timed,
)
from tools.speed.steps import ReconstructChosen, pull

CONFIG = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
UNIT = 'backbone.layer1.1'
#: units of a RetinaNet R50 and steps of each, as published
UNITS, STEPS = 33, 2000
#: steps that warm up, and runs of the float model
WARM, FLOATS = 5, 5


@dataclass(frozen=True)
class SteppedRecord(UnitRecord):
    """The reconstruction of one unit, timed.

    Attributes:
        steps (list[float]): Seconds of each step but the last.
        floats (list[float]): Seconds of the float unit on a batch.
        detector (list[float]): Of the float detector down to the unit.
    """

    steps: list[float] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)
    detector: list[float] = field(default_factory=list)


class SteppedTrainer(Trainer):
    """Notes when steps begin, and times the float model afterwards."""

    def step(self, *args: Any) -> Any:
        """One step, after all before it is done."""
        self._stamps.append(now(self.session.device.type))
        return super().step(*args)

    def fit(
        self, learners: list[Any], acts: list[Any], k: int
    ) -> SteppedRecord:
        """As the trainer's; then the float model, on as many images."""
        self._stamps: list[float] = []
        record = super().fit(learners, acts, k)
        return SteppedRecord(
            **vars(record),
            steps=[b - a for a, b in pairwise(self._stamps)],
            floats=self._times(self._unit),
            detector=self._times(self._detector),
        )

    def _times(self, outputs: Callable[[int], list[Tensor]]) -> list[float]:
        """Seconds of forward and backward on a batch, of a few runs."""
        device = self.session.device.type
        train, _ = self.split()
        weights = [m.weight for m in self.view.layers.values()]

        def run() -> None:
            with torch.enable_grad(), float_mode(self.images.model):
                for j in train[: self.settings.batch_size]:
                    pull(outputs(j), weights)

        for weight in weights:
            weight.requires_grad_(True)
        run()
        found = [timed(run, device) for _ in range(FLOATS)]
        for weight in weights:
            weight.requires_grad_(False)
        return found

    def _unit(self, j: int) -> list[Tensor]:
        """Outputs of the float unit on one image."""
        sample = self.samples[j]
        with forward_context(sample.images):
            return [
                t
                for levels, held in zip(
                    sample.levels, sample.inputs, strict=True
                )
                for t in self.view(levels, self.images.cache.fetch(held))
            ]

    def _detector(self, j: int) -> list[Tensor]:
        """Outputs of the float detector on one image."""
        found: list[Tensor] = []
        for one in tree_leaves(self.images.run(j)):
            if isinstance(one, DetectionOutputs):
                found += [t for t in (one.logits, one.boxes) if t is not None]
            else:
                found.append(one)
        return found


@PASSES.register_module()
class ReconstructStepped(ReconstructChosen):
    """Reconstructs one unit with :class:`SteppedTrainer`."""

    trainer = SteppedTrainer


def images_for(batch: int) -> int:
    """Images of which a batch is left when an eighth is held out."""
    return batch + max(1, -(-batch // 7))


def measure(
    config: str,
    unit: str,
    size: tuple[int, int],
    batch: int,
    iters: int,
    device: str,
    cache: str,
) -> dict[str, Any]:
    """Times QDrop's steps on one unit of a random detector.

    Args:
        config (str): A config, a file or ``mmdet::...``.
        unit (str): Its name.
        size (tuple[int, int]): Height and width of the images, pixels.
        batch (int): Images of a step.
        iters (int): Steps; the first :data:`WARM` do not count.
        device (str): ``'cpu'`` or ``'cuda'``.
        cache (str): ``calibration.cache``.

    Returns:
        dict[str, Any]: ``step_ms``, ``float_unit_ms``, ``float_detector_ms``
        (medians), ``over_float`` (step over float unit), ``hours``, seconds
        of the calibration, on a GPU its peak memory.

    Raises:
        ValueError: If the detector has no such unit.
    """
    forget_peak(device)
    own = dict(type='ReconstructStepped', iters=iters, batch_size=batch)
    passes = [
        {**one, **own} if one['type'] == 'Reconstruct' else one
        for one in load_recipe('qdrop')['passes']
    ]
    ReconstructStepped.pick = staticmethod(lambda units: [unit])
    model = random_detector(config).to(device)
    data = noise_batches(images_for(batch), size)
    settle_batch_norms(model, data[:2])
    calibration = dict(num_samples=len(data), cache=cache)
    session = quantize_detector(
        model,
        data,
        dict(
            recipe='qdrop', bits='w4a4', passes=passes, calibration=calibration
        ),
    )
    if not session.records:
        known = ', '.join(one.name for one in session.graph.units)
        raise ValueError(f'no unit {unit}; there are {known}')
    (seen,) = session.records
    step, plain, whole = (
        statistics.median(t)
        for t in (seen.steps[WARM:], seen.floats, seen.detector)
    )
    return dict(
        step_ms=round(step * 1e3, 2),
        float_unit_ms=round(plain * 1e3, 2),
        float_detector_ms=round(whole * 1e3, 2),
        over_float=round(step / plain, 3),
        hours=round(step * UNITS * STEPS / 3600, 3),
        calibration_s=round(session.seconds['calibration'], 2),
        **peak_mb(device),
    )


def parse_args(words: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', default=CONFIG)
    parser.add_argument('--unit', default=UNIT)
    parser.add_argument('--batches', type=int, nargs='+', default=[2])
    parser.add_argument('--iters', type=int, default=40)
    parser.add_argument('--cache', default='8GiB')
    parser.add_argument('--out')
    add_size(parser, (800, 1216))
    add_device(parser)
    args = parser.parse_args(words)
    check_device(parser, args)
    if args.iters < WARM + 2:
        parser.error(f'--iters: the first {WARM} do not count, give more')
    return args


def main(words: list[str]) -> int:
    """Prints and writes the times.

    Args:
        words (list[str]): The command line.

    Returns:
        int: Exit code.
    """
    args = parse_args(words)
    warnings.filterwarnings('ignore')
    found = dict(
        command='python -m tools.speed.unit_step',
        settings={k: v for k, v in vars(args).items() if k != 'out'},
        machine=machine_line(args.device),
        date=str(date.today()),
        steps={
            batch: measure(
                args.config,
                args.unit,
                sides(args.size),
                batch,
                args.iters,
                args.device,
                args.cache,
            )
            for batch in args.batches
        },
    )
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
