# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Time and waiting on the device that computes."""

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


def peak_mb(device: str) -> dict[str, int]:
    """Most memory of the GPU that tensors took so far, MiB; empty on a CPU."""
    if device == 'cpu':
        return {}
    return dict(peak_gpu_mb=torch.cuda.max_memory_allocated() // 2**20)
