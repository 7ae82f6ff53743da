# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Measures time as ratios to the float model within one run.

``python -m tools.speed.benchmark reconstruct`` measures steps and memory of
a reconstruction; ``--help`` after it shows its options.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.engine.machine import machine_line
from mmdet_ptq.testing import (
    noise_batches,
    random_detector,
    settle_batch_norms,
)
from tools.speed import reconstruct

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


def seconds(model: nn.Module, batch: dict) -> float:
    """Time of one prediction."""
    batch = copy.deepcopy(batch)
    start = time.perf_counter()
    with torch.no_grad():
        model.test_step(batch)
    return time.perf_counter() - start


def measure(
    config: str, size: int, images: int, repeats: int, recipe: str, bits: str
) -> dict:
    """Calibration and simulated forward of one detector.

    Args:
        config (str): A config of MMDetection, below its ``configs``.
        size (int): Height and width of the images, pixels.
        images (int): Number of calibration images.
        repeats (int): Interleaved forwards for the second ratio.
        recipe (str): Recipe name.
        bits (str): E.g. ``w8a8``.

    Returns:
        dict: Ratios ``calibrate`` (convert and calibrate over as many
        float forwards) and ``forward`` (median quantized over median
        float), and the float forward in seconds.
    """
    model = random_detector('mmdet::' + config)
    data = noise_batches(images, (size, size))
    settle_batch_norms(model, data[:2])
    seconds(model, data[0])
    plain = copy.deepcopy(model)
    floats = sum(seconds(plain, batch) for batch in data)
    start = time.perf_counter()
    session = quantize_detector(
        model,
        data,
        dict(recipe=recipe, bits=bits, calibration=dict(num_samples=images)),
    )
    spent = time.perf_counter() - start
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats):
        for which, one in enumerate((plain, model)):
            times[which].append(seconds(one, data[i % images]))
    before, after = (statistics.median(t) for t in times)
    return dict(
        calibrate=round(spent / floats, 3),
        forward=round(after / before, 3),
        float_forward_s=round(before, 4),
        stages={k: round(v / floats, 3) for k, v in session.seconds.items()},
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


#: options that change nothing in a measurement
_PLACES = ('out', 'only')


def main() -> int:
    """Prints and writes a table of ratios."""
    if sys.argv[1:2] == ['reconstruct']:
        return reconstruct.main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--only', nargs='*', choices=list(DETECTORS), default=list(DETECTORS)
    )
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--images', type=int, default=16)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--recipe', default='uniform')
    parser.add_argument('--bits', default='w8a8')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--out', default='docs/results/benchmark.json')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    path = Path(args.out)
    settings = {k: v for k, v in vars(args).items() if k not in _PLACES}
    head = dict(
        command='python -m tools.speed.benchmark',
        settings=settings,
        machine=machine_line(),
    )
    # what was measured in the same way before stays
    old = json.loads(path.read_text()) if path.is_file() else {}
    same = all(old.get(key) == value for key, value in head.items())
    found = old['detectors'] if same else {}
    for name in args.only:
        found[name] = measure(
            DETECTORS[name],
            args.size,
            args.images,
            args.repeats,
            args.recipe,
            args.bits,
        )
        print(
            f'{name}: calibrate {found[name]["calibrate"]:.2f} x, '
            f'forward {found[name]["forward"]:.2f} x',
            flush=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(head, detectors=found), indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
