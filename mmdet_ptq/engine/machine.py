# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a result was computed on; its last digits depend on it."""

import os
import platform
from pathlib import Path

import torch


def machine(device: str | torch.device = 'cpu') -> dict[str, str | int]:
    """Names of processor, instruction set and GPU.

    Args:
        device (str | torch.device): What computes. Defaults to the CPU.

    Returns:
        dict[str, str | int]: ``cpu`` (its model), ``instructions`` (the set
        that PyTorch's kernels use, e.g. ``AVX512``), ``cores``, ``threads``
        (of PyTorch), and ``gpu`` if the device is one.
    """
    device = torch.device(device)
    found: dict[str, str | int] = dict(
        cpu=cpu_model(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
    )
    if device.type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
    return found


def gpu_memory(device: str | torch.device) -> dict[str, float]:
    """Most memory of a GPU that tensors took in this process so far.

    Args:
        device (str | torch.device): What computes.

    Returns:
        dict[str, float]: ``peak_gpu_mb``, MiB; empty if it is no GPU.
    """
    device = torch.device(device)
    if device.type != 'cuda':
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    return dict(peak_gpu_mb=round(peak, 1))


def machine_line(device: str | torch.device = 'cpu') -> str:
    """:func:`machine` as a line, with the version of PyTorch."""
    found = machine(device)
    names = [found['cpu'], found['instructions'], f'{found["cores"]} cores']
    names += [found[key] for key in ('gpu',) if key in found]
    return ', '.join([*map(str, names), f'torch {torch.__version__}'])


def cpu_model(info: str | Path = '/proc/cpuinfo') -> str:
    """Model of the processor.

    Args:
        info (str | Path): Where Linux lists processors.

    Returns:
        str: E.g. ``'Intel(R) Xeon(R) Processor @ 2.60GHz'``; where the
        system does not say it, what Python knows, at least the architecture.
    """
    path = Path(info)
    if path.is_file():
        for line in path.read_text(errors='replace').splitlines():
            name, _, value = line.partition(':')
            if name.strip() in ('model name', 'Hardware') and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
