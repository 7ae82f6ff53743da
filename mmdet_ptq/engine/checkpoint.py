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
from mmengine.logging import HistoryBuffer, print_log
from torch import nn

from ..errors import CheckpointError, NumericError

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
_MAY_MISS = re.compile(r'num_batches_tracked$|relative_position_index$')


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
        name = re.search(r'GLOBAL (\S+)', str(error))
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
            f'checkpoint {path} {what}; give the path of a '
            '.pth file (download it first if it is a URL)'
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


def load_float_weights(
    model: nn.Module, checkpoint: dict, path: str | Path
) -> None:
    """Copies float weights into a model, strictly.

    Args:
        model (nn.Module): As its config builds it.
        checkpoint (dict): With ``state_dict``, or one itself.
        path (str | Path): Where it came from, for messages.

    Raises:
        CheckpointError: If keys are missing or shapes differ; the message
            lists them.
        NumericError: If a weight is NaN or Inf; names the layer.
    """
    state: Any = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict):
        raise CheckpointError(
            f"the 'state_dict' of {path} is a "
            f'{type(state).__name__}, not a dict'
        )
    state = OrderedDict(
        (re.sub(r'^module\.', '', k), v)
        for k, v in state.items()
        if isinstance(k, str) and isinstance(v, torch.Tensor)
    )
    own = model.state_dict()
    shapes = [
        f'{k}: {tuple(v.shape)} in the file, {tuple(own[k].shape)} in the '
        'model'
        for k, v in state.items()
        if k in own and own[k].shape != v.shape and own[k].numel()
    ]
    try:
        # a tensor of another shape ends it, so it reports names only
        keys = model.load_state_dict(
            {
                k: v
                for k, v in state.items()
                if k not in own or own[k].shape == v.shape
            }
            if shapes
            else state,
            strict=False,
        )
    except RuntimeError as error:
        raise CheckpointError(
            f'{path} does not fit this model: {error}'
        ) from error
    missing = [
        k
        for k in keys.missing_keys
        if not _MAY_MISS.search(k) and k not in state
    ]
    unexpected = list(keys.unexpected_keys)
    if shapes or missing:
        raise CheckpointError(
            f'{path} is of another architecture than the config.'
            + _some('missing', missing)
            + _some('unexpected', unexpected)
            + _some('other shape', shapes)
            + '\n  Use the config that the checkpoint was trained with.'
        )
    if unexpected:
        print_log(
            f'{path}:{_some("not used by this model", unexpected)}',
            'current',
            30,
        )
    for name, value in own.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NumericError(
                f'{path}: {name} has NaN or Inf values; the training '
                'diverged or the file is damaged'
            )


def _some(what: str, keys: list[str]) -> str:
    if not keys:
        return ''
    more = f' and {len(keys) - 8} more' if len(keys) > 8 else ''
    return f'\n  {what} ({len(keys)}): {"; ".join(keys[:8])}{more}'


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
