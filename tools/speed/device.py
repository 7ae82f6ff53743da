# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Time and waiting on the device that computes."""

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

#: what a profile calls copies, waits of the CPU for the GPU, and numbers
#: that the CPU asks for
COPIES = ('Memcpy HtoD', 'Memcpy DtoH')
WAIT, ITEM = 'cudaStreamSynchronize', 'aten::item'


def now(device: str) -> float:
    """Seconds on a clock, after all that a device was given is done.

    Args:
        device (str): ``'cpu'`` or ``'cuda'``.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds that a call takes on a device."""
    start = now(device)
    run()
    return now(device) - start


def crossings(run: Callable[[], Any], device: str) -> dict[str, int]:
    """How often a call copies between CPU and GPU, or waits for the GPU.

    Args:
        run (Callable): The call; it runs twice, profiled once.
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        dict[str, int]: ``copies``, ``waits``, ``item`` and ``kernels``;
        empty on a CPU.
    """
    if device == 'cpu':
        return {}
    run()
    torch.cuda.synchronize()
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
    ) as found:
        run()
    events = found.events()
    names = [event.name for event in events]
    return dict(
        copies=sum(n.startswith(COPIES) for n in names),
        waits=sum(n == WAIT for n in names),
        item=sum(n == ITEM for n in names),
        kernels=sum(
            e.device_type == DeviceType.CUDA and not e.name.startswith('Mem')
            for e in events
        ),
    )


def forget_peak(device: str) -> None:
    """Begins :func:`peak_mb` anew; what nothing refers to goes first."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()


def peak_mb(device: str) -> dict[str, int]:
    """Most memory of the GPU that tensors took, MiB; empty on a CPU."""
    if device == 'cpu':
        return {}
    return dict(peak_gpu_mb=torch.cuda.max_memory_allocated() // 2**20)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option ``--device``."""
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')


def add_size(
    parser: argparse.ArgumentParser, default: tuple[int, ...]
) -> None:
    """The option ``--size``, read by :func:`sides`."""
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        default=list(default),
        help='side of a square, or height and width, pixels',
    )


def sides(size: list[int]) -> tuple[int, int]:
    """Height and width of what ``--size`` was given."""
    return size[0], size[-1]


def check_device(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
    """Refuses a GPU that is not there, and a size of three numbers."""
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: PyTorch sees no GPU here')
    if len(args.size) > 2:
        parser.error('--size takes a side, or height and width')
