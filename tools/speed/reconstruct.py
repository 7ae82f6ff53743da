# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Measures Reg-PTQ's steps, memory and, with a GPU, a whole run.

Called by ``python -m tools.speed.benchmark reconstruct``.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

import torch

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Session
from mmdet_ptq.engine.machine import machine_line
from mmdet_ptq.passes import Reconstruct
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg
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
    sides,
)
from tools.speed.memory import FEW, WatchedReconstruct, growth, in_child
from tools.speed.steps import TimedReconstruct, clock_of, summarize

CONFIG = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
COMMAND = 'python -m tools.speed.benchmark reconstruct'
FULL = dict(size=(800, 1333), images=64, iters=2000)


def quant_cfg(
    images: int,
    iters: int,
    kind: type[Reconstruct] = Reconstruct,
    **calibration: str,
) -> dict:
    """Reg-PTQ at 4 bits, one image a step.

    Args:
        images (int): Number of calibration images.
        iters (int): Steps of a unit.
        kind (type[Reconstruct]): The pass that reconstructs; registered.
        **calibration (str): What else ``calibration`` says.

    Returns:
        dict: The ``quant_cfg``.
    """
    own = dict(type=kind.__name__, iters=iters, batch_size=1)
    passes = load_recipe('reg_ptq')['passes']
    return dict(
        recipe='reg_ptq',
        bits='w4a4',
        passes=[
            {**one, **own} if one['type'] == 'Reconstruct' else one
            for one in passes
        ],
        calibration=dict(num_samples=images, **calibration),
    )


def quantized(
    config: str, size: tuple[int, int], device: str, cfg: dict
) -> Session:
    """Quantizes a random detector on random images.

    Args:
        config (str): A config, a file or ``mmdet::...``.
        size (tuple[int, int]): Height and width of the images, pixels.
        device (str): ``'cpu'`` or ``'cuda'``.
        cfg (dict): The ``quant_cfg``.

    Returns:
        Session: The finished session.
    """
    model = random_detector(config).to(device)
    data = noise_batches(cfg['calibration']['num_samples'], size)
    settle_batch_norms(model, data[:FEW])
    return quantize_detector(model, data, cfg)


def measure_steps(
    config: str,
    size: tuple[int, int],
    images: int,
    iters: int,
    device: str,
) -> dict[str, dict]:
    """Steps of the two chosen units.

    Args:
        config (str): A config of a RetinaNet.
        size (tuple[int, int]): Height and width of the images, pixels.
        images (int): Number of calibration images.
        iters (int): Steps of a unit; all but two count.
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        dict[str, dict]: :func:`steps.summarize` of each unit.
    """
    cfg = quant_cfg(images, iters, TimedReconstruct)
    session = quantized(config, size, device, cfg)
    return {r.unit: summarize(r.times) for r in session.records}


def measure_memory(
    config: str, size: int, images: int, bound: str, iters: int, threads: int
) -> dict:
    """Memory of both chosen units, in two processes on the CPU.

    Args:
        config (str): A config of a RetinaNet.
        size (int): Height and width of the images, pixels.
        images (int): Number of calibration images.
        bound (str): ``calibration.cache``.
        iters (int): Steps of a unit.
        threads (int): Of torch.

    Returns:
        dict: See :func:`memory.growth`.
    """
    cfg = quant_cfg(images, iters, WatchedReconstruct, cache=bound)
    many, few = (
        in_child(config, size, images, used, cfg, threads)
        for used in (images, FEW)
    )
    limit = parse_quant_cfg(cfg).calibration.cache_bytes
    return growth(many, few, limit)


def measure_full(
    config: str, size: tuple[int, int], images: int, iters: int, device: str
) -> dict:
    """Every unit with Reg-PTQ, from the float model to the end.

    Args:
        config (str): A config of any detector.
        size (tuple[int, int]): Height and width of the images, pixels.
        images (int): Number of calibration images.
        iters (int): Steps of a unit.
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        dict: ``minutes`` in all and in each stage, ``units`` and, on a
        GPU, ``peak_gib``: most that PyTorch had allocated there.
    """
    forget_peak(device)
    start = now(device)
    session = quantized(config, size, device, quant_cfg(images, iters))
    spent = now(device) - start
    peak = torch.cuda.max_memory_allocated() if device == 'cuda' else None
    return dict(
        minutes=round(spent / 60, 2),
        stages={k: round(v / 60, 2) for k, v in session.seconds.items()},
        units=len(session.records),
        kept=sum(r.kept for r in session.records),
        peak_gib=None if peak is None else round(peak / 2**30, 2),
    )


def parse_args(words: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument(
        '--config', default=CONFIG, help='of a RetinaNet with a ResNet'
    )
    add_size(parser, (512,))
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--iters', type=int, default=7)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    add_device(parser)
    parser.add_argument('--memory-size', type=int, default=128)
    parser.add_argument('--memory-images', type=int, default=24)
    parser.add_argument('--memory-iters', type=int, default=4)
    parser.add_argument('--cache', default='64MiB', help='bound of memory')
    parser.add_argument(
        '--no-memory', action='store_true', help='time the steps only'
    )
    parser.add_argument(
        '--full',
        action='store_true',
        help='a whole run and nothing else: 800 x 1333 pixels, 64 images, '
        '2000 steps a unit; needs --device cuda and 30 GB of disk',
    )
    parser.add_argument(
        '--out', default='docs/results/benchmark_reconstruct.json'
    )
    args = parser.parse_args(words)
    check_device(parser, args)
    if args.full and args.device != 'cuda':
        parser.error(
            '--full takes days on a CPU: give --device cuda on a machine '
            'with a GPU'
        )
    if args.iters < 3:
        parser.error('--iters: the first and last step do not count, give 3')
    if min(args.images, args.memory_images) < FEW:
        parser.error(f'at least {FEW} images: one is held out')
    return args


def command_of(words: list[str]) -> str:
    """The command line, without the place of the result."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--out')
    return ' '.join([COMMAND, *parser.parse_known_args(words)[1]])


def write(path: Path, part: str, found: dict, settings: dict) -> None:
    """Puts one measurement into the result file; the others stay.

    Args:
        path (Path): The file.
        part (str): ``steps``, ``memory`` or ``full``.
        found (dict): What was measured.
        settings (dict): What it was measured with.
    """
    old = json.loads(path.read_text()) if path.is_file() else {}
    old[part] = dict(settings, found=found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(old, indent=1) + '\n')


def main(words: list[str]) -> int:
    """Measures, prints and writes.

    Args:
        words (list[str]): The command line after ``reconstruct``.

    Returns:
        int: Exit code.
    """
    args = parse_args(words)
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    path = Path(args.out)
    common = dict(
        command=command_of(words),
        machine=machine_line(args.device),
        config=args.config,
        threads=args.threads,
        device=args.device,
    )
    if args.full:
        found = measure_full(args.config, device=args.device, **FULL)
        print(json.dumps(found), flush=True)
        write(path, 'full', found, dict(common, **FULL))
        return 0
    settings = dict(
        size=sides(args.size), images=args.images, iters=args.iters
    )
    found = measure_steps(args.config, device=args.device, **settings)
    for unit, one in found.items():
        print(f'{unit}: {json.dumps(one)}', flush=True)
    clock = clock_of(args.device)
    write(path, 'steps', found, dict(common, clock=clock, **settings))
    if not args.no_memory:
        settings = dict(
            size=args.memory_size,
            images=args.memory_images,
            iters=args.memory_iters,
            bound=args.cache,
        )
        found = measure_memory(args.config, threads=args.threads, **settings)
        print(f'memory: {json.dumps(found)}', flush=True)
        write(path, 'memory', found, dict(common, device='cpu', **settings))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
