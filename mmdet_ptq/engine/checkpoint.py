# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Float checkpoints, treated as the untrusted input they are."""

import hashlib
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from ..errors import CheckpointError

# NumPy 2 renamed the module; a file names the one it was written with
_multiarray = getattr(np, '_core', None) or np.core
_multiarray = _multiarray.multiarray


def _statistic(owner: type, name: str) -> Any:
    """Stands in for ``getattr``, by which a log history names methods."""
    if owner is not HistoryBuffer or name not in (
        'min',
        'max',
        'mean',
        'current',
    ):
        raise pickle.UnpicklingError('Unsupported global: GLOBAL getattr')
    return getattr(owner, name)


# what MMEngine's own checkpoints hold beside tensors: log histories in
# 'message_hub', and plain containers in 'meta'
_SAFE = [
    HistoryBuffer,
    ConfigDict,
    OrderedDict,
    np.ndarray,
    np.dtype,
    *(
        (getattr(_multiarray, name), f'numpy.{core}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for core in ('_core', 'core')
    ),
    (_statistic, 'builtins.getattr'),
    (_statistic, '__builtin__.getattr'),
    *{
        type(np.dtype(t))
        for t in (
            'f2',
            'f4',
            'f8',
            'i1',
            'i2',
            'i4',
            'i8',
            'u1',
            'u2',
            'u4',
            'u8',
            '?',
        )
    },
]


def read_checkpoint(path: str | Path, trust: bool = False) -> dict:
    """Reads a checkpoint of MMEngine, PyTorch or this package.

    Args:
        path (str | Path): A local file.
        trust (bool): Unpickle anything, which can run code that the file
            brings along. Defaults to False.

    Returns:
        dict: As it was saved.

    Raises:
        CheckpointError: If it is missing, corrupt or needs trust.
    """
    path = Path(path)
    check_file(path)
    try:
        if trust:
            found = torch.load(path, map_location='cpu', weights_only=False)
        else:
            with torch.serialization.safe_globals(_SAFE):
                found = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r'GLOBAL ([\w.]+)( was| whose|$)', str(error), re.M)
        if name is None:
            raise _corrupt(path, error) from error
        raise CheckpointError(
            f'checkpoint {path} holds objects that loading would execute: '
            f'{name[1]}. If you trust where it comes from, pass '
            '--trust-checkpoint (in a config: '
            'ptq_cfg = dict(trust_checkpoint=True))'
        ) from error
    except Exception as error:
        raise _corrupt(path, error) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(found).__name__}, not a dict'
        )
    return found


def check_file(path: str | Path) -> None:
    """Refuses a checkpoint that is no file.

    Raises:
        CheckpointError: Says what it is.
    """
    path = Path(path)
    if not path.is_file():
        what = 'is a folder' if path.is_dir() else 'does not exist'
        raise CheckpointError(
            f'checkpoint {path} {what}; give the path or URL of a .pth file'
        )


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        # before it, PyTorch advises to load what can run code
        text = text.rpartition('WeightsUnpickler error:')[2].strip()
    why = (text.splitlines() or [''])[0][:200]
    if 'weights_only' in why:
        why = 'no pickle of tensors'
    return CheckpointError(
        f'checkpoint {path} cannot be read, it is corrupt or no checkpoint '
        f'({type(error).__name__}: {why}). Get the file again.'
    )


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
