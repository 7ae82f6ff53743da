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
import warnings
from datetime import date
from functools import partial
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
from tools.speed.device import crossings, now, peak_mb, timed

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
        config (str): A config of MMDetection, below its ``configs``.
        size (tuple[int, int]): Height and width of the images, pixels.
        images (int): Number of calibration images.
        repeats (int): Interleaved forwards for the second ratio.
        cfg (dict): Recipe and bits.
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        dict: Ratios ``calibrate`` (convert and calibrate over as many
        float forwards) and ``forward`` (median quantized over median
        float), the float forward in seconds, stages of the calibration as
        ratios too; on a GPU what crosses in a forward.
    """
    model = random_detector('mmdet::' + config).to(device)
    data = noise_batches(images, size)
    settle_batch_norms(model, data[:2])
    predict(model, data[0])
    plain = copy.deepcopy(model)
    floats = sum(timed(lambda b=b: predict(plain, b), device) for b in data)
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
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **peak_mb(device),
    )
    for name, one in (('float', plain), ('quantized', model)):
        crossed = crossings(partial(predict, one, data[0]), device)
        if crossed:
            found[f'crossings_{name}'] = crossed
    return found


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
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        default=[512],
        help='side of a square, or height and width, pixels',
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--images', type=int, default=16)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--recipe', default='uniform')
    parser.add_argument('--bits', default='w8a8')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument(
        '--out',
        help='default: docs/results/benchmark.json, benchmark_cuda.json',
    )
    args = parser.parse_args()
    if len(args.size) > 2:
        parser.error('--size takes a side, or height and width')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: PyTorch sees no GPU here')
    if args.out is None:
        suffix = '' if args.device == 'cpu' else f'_{args.device}'
        args.out = f'docs/results/benchmark{suffix}.json'
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    path = Path(args.out)
    settings = {k: v for k, v in vars(args).items() if k not in _PLACES}
    head = dict(
        command='python -m tools.speed.benchmark',
        settings=settings,
        machine=machine_line(args.device),
        **({} if args.device == 'cpu' else dict(date=str(date.today()))),
    )
    # what was measured in the same way before stays
    old = json.loads(path.read_text()) if path.is_file() else {}
    same = all(old.get(key) == value for key, value in head.items())
    found = old['detectors'] if same else {}
    for name in args.only:
        found[name] = measure(
            DETECTORS[name],
            (args.size[0], args.size[-1]),
            args.images,
            args.repeats,
            dict(recipe=args.recipe, bits=args.bits),
            args.device,
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
