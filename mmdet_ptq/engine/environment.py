# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranks, devices, streams, and the folder that a run writes to."""

import io
import os
import subprocess
from pathlib import Path
from typing import IO

import torch

from ..errors import PTQError


def name_ranks(launcher: str) -> None:
    """Gives torch.distributed the names that a launcher has for ranks.

    Args:
        launcher (str): ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
    """
    if launcher == 'slurm':
        nodes = os.environ['SLURM_NODELIST']
        names = dict(
            RANK='SLURM_PROCID',
            WORLD_SIZE='SLURM_NTASKS',
            LOCAL_RANK='SLURM_LOCALID',
        )
        os.environ.setdefault(
            'MASTER_ADDR',
            subprocess.getoutput(f'scontrol show hostname {nodes} | head -n1'),
        )
    elif launcher == 'mpi':
        names = dict(
            RANK='OMPI_COMM_WORLD_RANK',
            WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
            LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK',
        )
        os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    else:
        return
    os.environ.setdefault('MASTER_PORT', '29500')
    os.environ.update({new: os.environ[old] for new, old in names.items()})


def check_writable(work_dir: str) -> None:
    """Refuses a work dir that cannot be written to.

    Raises:
        PTQError: With the reason the system gives.
    """
    probe = Path(work_dir) / '.ptq_probe'
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'')
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise PTQError(
            f'work dir {work_dir} is not writable: '
            f'{error.strerror}. Choose another with --work-dir.'
        ) from error


def check_device(wanted: str) -> None:
    """Refuses a device that is none, or that this machine does not have.

    Args:
        wanted (str): As a user wrote it.

    Raises:
        PTQError: Lists the devices that there are.
    """
    try:
        # `meta` is a device that keeps no numbers
        torch.zeros(1, device=torch.device(wanted)).tolist()
    except Exception as error:
        # each backend raises what it likes
        found = ['cpu', *map('cuda:{}'.format, range(_gpus()))]
        raise PTQError(
            f'device {wanted!r} cannot be used; this machine has '
            f'{", ".join(found)} (--device, or device in the config)'
        ) from error


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def tolerate(*streams: IO[str]) -> None:
    """Lets text streams write '?' for what their encoding does not have.

    A terminal that is not UTF-8 would end a run at the first special
    character, when everything is computed and the table is printed.

    Args:
        *streams (IO[str]): E.g. ``sys.stdout``; others than those of files
            and terminals stay as they are.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == 'strict':
            stream.reconfigure(errors='replace')
