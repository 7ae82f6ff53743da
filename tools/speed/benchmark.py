# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Measures time as ratios to the float model within one run.

``python -m tools.speed.benchmark reconstruct`` measures steps and memory of
a reconstruction; ``--help`` after it shows its options.
"""

import argparse
import copy
import json
import os
import re
import statistics
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.engine.machine import machine_line
from mmdet_ptq.testing import (
    noise_batches,
    random_detector,
    settle_batch_norms,
)
from tools.speed import reconstruct, unit_step
from tools.speed.device import (
    add_device,
    add_size,
    check_device,
    crossings,
    forget_peak,
    now,
    peak_mb,
    sides,
    timed,
)

DETECTORS = {
    'RetinaNet R50': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'YOLOF R50': 'yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'Faster R-CNN R50': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN Swin-T': 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'Cascade Mask R-CNN R50': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
    ),
    'DETR R50': 'detr/detr_r50_8xb2-150e_coco.py',
}


def predict(model: nn.Module, batch: dict) -> None:
    """One prediction."""
    with torch.no_grad():
        model.test_step(copy.deepcopy(batch))


def _peak_rss_mb() -> int:
    """The most memory that this process has had, MiB.

    ``ru_maxrss`` would count what its parent had when it was started.
    """
    status = Path('/proc/self/status').read_text()
    found = re.search(r'^VmHWM:\s+(\d+) kB$', status, re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024


def measure(
    config: str,
    size: tuple[int, int],
    images: int,
    repeats: int,
    cfg: dict,
    device: str,
) -> dict:
    """Calibration and simulated forward of one detector.

    Args:
        config (str): A config of MMDetection, below its ``configs``, or a
            file.
        size (tuple[int, int]): Height and width of the images, pixels.
        images (int): Number of calibration images.
        repeats (int): Interleaved forwards for the second ratio.
        cfg (dict): Recipe and bits.
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        dict: Ratios ``calibrate`` (convert and calibrate over as many
        float forwards) and ``forward`` (median quantized over median
        float), the float forward in seconds, stages of the calibration as
        ratios too; the most memory that the process had after the float
        forwards, and at all; on a GPU what crosses in a forward.
    """
    forget_peak(device)
    name = config if Path(config).is_file() else f'mmdet::{config}'
    model = random_detector(name).to(device)
    data = noise_batches(images, size)
    settle_batch_norms(model, data[:2])
    predict(model, data[0])
    plain = copy.deepcopy(model)
    floats = sum(timed(lambda b=b: predict(plain, b), device) for b in data)
    rss = _peak_rss_mb()
    start = now(device)
    calibration = dict(num_samples=images)
    session = quantize_detector(
        model, data, dict(cfg, calibration=calibration)
    )
    spent = now(device) - start
    predict(model, data[0])
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats):
        batch = data[i % images]
        for which, one in enumerate((plain, model)):
            run = partial(predict, one, batch)
            times[which].append(timed(run, device))
    before, after = (statistics.median(t) for t in times)
    found = dict(
        calibrate=round(spent / floats, 3),
        forward=round(after / before, 3),
        float_forward_s=round(before, 4),
        stages={k: round(v / floats, 3) for k, v in session.seconds.items()},
        float_peak_rss_mb=rss,
        peak_rss_mb=_peak_rss_mb(),
        **peak_mb(device),
    )
    for name, one in (('float', plain), ('quantized', model)):
        crossed = crossings(partial(predict, one, data[0]), device)
        if crossed:
            found[f'crossings_{name}'] = crossed
    return found


def measure_apart(threads: int, *args: Any) -> dict:
    """:func:`measure` in a new process, whose peaks are of it alone.

    Args:
        threads (int): Of torch.
        *args: Of :func:`measure`.
    """
    with ProcessPoolExecutor(
        1,
        get_context('spawn'),
        initializer=_set_up,
        initargs=(threads,),
    ) as pool:
        return pool.submit(measure, *args).result()


def _set_up(threads: int) -> None:
    warnings.filterwarnings('ignore')
    torch.set_num_threads(threads)


#: options that change nothing in a measurement
_PLACES = ('out', 'only')


def parse_args(words: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--only', nargs='*', choices=list(DETECTORS), default=list(DETECTORS)
    )
    add_size(parser, (512,))
    add_device(parser)
    parser.add_argument('--images', type=int, default=16)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--recipe', default='uniform')
    parser.add_argument('--bits', default='w8a8')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument(
        '--step-batches',
        type=int,
        nargs='*',
        default=[],
        help='also time steps of QDrop with so many images each',
    )
    parser.add_argument('--iters', type=int, default=40, help='of such steps')
    parser.add_argument('--cache', default='8GiB', help='bound of these')
    parser.add_argument(
        '--out',
        help='default: docs/results/benchmark.json, benchmark_cuda.json',
    )
    args = parser.parse_args(words)
    check_device(parser, args)
    if args.out is None:
        suffix = '' if args.device == 'cpu' else f'_{args.device}'
        args.out = f'docs/results/benchmark{suffix}.json'
    return args


def measured_before(path: Path, head: dict) -> dict:
    """Detectors and steps that were measured in the same way before."""
    old = json.loads(path.read_text()) if path.is_file() else {}
    same = all(old.get(key) == value for key, value in head.items())
    return {k: old.get(k, {}) if same else {} for k in ('detectors', 'steps')}


def main(words: list[str]) -> int:
    """Prints and writes a table of ratios.

    Args:
        words (list[str]): The command line.

    Returns:
        int: Exit code.
    """
    if words[:1] == ['reconstruct']:
        return reconstruct.main(words[1:])
    args = parse_args(words)
    _set_up(args.threads)
    path, size = Path(args.out), sides(args.size)
    cfg = dict(recipe=args.recipe, bits=args.bits)
    places = (*_PLACES, 'step_batches')
    head = dict(
        command='python -m tools.speed.benchmark',
        settings={k: v for k, v in vars(args).items() if k not in places},
        machine=machine_line(args.device),
        **({} if args.device == 'cpu' else dict(date=str(date.today()))),
    )
    found = measured_before(path, head)

    def keep(part: str, name: str, one: dict, said: str) -> None:
        print(f'{name}: {said}', flush=True)
        found[part][name] = one
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**head, **found}, indent=1) + '\n')

    for name in args.only:
        one = measure_apart(
            args.threads,
            *(DETECTORS[name], size, args.images, args.repeats),
            *(cfg, args.device),
        )
        said = (
            f'calibrate {one["calibrate"]:.2f} x, '
            f'forward {one["forward"]:.2f} x'
        )
        keep('detectors', name, one, said)
    for batch in args.step_batches:
        one = unit_step.measure(
            unit_step.CONFIG,
            unit_step.UNIT,
            size,
            batch,
            args.iters,
            args.device,
            args.cache,
        )
        said = f'{one["step_ms"]} ms, {one["over_float"]} x the float unit'
        keep('steps', str(batch), one, said)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
