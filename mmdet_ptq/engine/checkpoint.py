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

# what MMEngine's own checkpoints hold beside tensors: log histories in
# 'message_hub', and plain containers in 'meta'
_SAFE = [
    HistoryBuffer, ConfigDict, OrderedDict, np.ndarray, np.dtype,
    np._core.multiarray._reconstruct, np._core.multiarray.scalar,
    (np._core.multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
    (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
    *{type(np.dtype(t)) for t in ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8',
                                  'u1', 'u2', 'u4', 'u8', '?')},
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
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} does not exist')
    try:
        if trust:
            found = torch.load(path, map_location='cpu', weights_only=False)
        else:
            with torch.serialization.safe_globals(_SAFE):
                found = torch.load(
                    path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r'GLOBAL (\S+)', str(error))
        if name is None and 'Weights only' not in str(error):
            raise _corrupt(path, error) from error
        raise CheckpointError(
            f'checkpoint {path} holds objects that loading would execute'
            f'{": " + name[1] if name else ""}. If you trust where it comes '
            'from, pass --trust-checkpoint (in a config: '
            'trust_checkpoint = True)') from error
    except Exception as error:
        raise _corrupt(path, error) from error
    if not isinstance(found, dict):
        raise CheckpointError(f'checkpoint {path} holds a '
                              f'{type(found).__name__}, not a dict')
    return found


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'checkpoint {path} cannot be read, it is corrupt or no checkpoint: '
        f'{type(error).__name__}: {str(error).splitlines()[0][:200]}')


def load_float_weights(model: nn.Module, checkpoint: dict,
                       path: str | Path) -> None:
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
    state = OrderedDict(
        (re.sub(r'^module\.', '', k), v) for k, v in state.items()
        if isinstance(v, torch.Tensor))
    own = model.state_dict()
    shapes = [
        f'{k}: {tuple(v.shape)} in the file, {tuple(own[k].shape)} in the '
        'model' for k, v in state.items()
        if k in own and own[k].shape != v.shape and own[k].numel()
    ]
    try:
        keys = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        if not shapes:
            raise CheckpointError(
                f'{path} does not fit this model: {error}') from error
        keys = None
    missing = [k for k in keys.missing_keys
               if not _MAY_MISS.search(k)] if keys else []
    unexpected = list(keys.unexpected_keys) if keys else []
    if shapes or missing:
        raise CheckpointError(
            f'{path} is of another architecture than the config.' +
            _some('missing', missing) + _some('unexpected', unexpected) +
            _some('other shape', shapes))
    if unexpected:
        print_log(f'{path}:{_some("not used by this model", unexpected)}',
                  'current', 30)
    for name, value in own.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NumericError(
                f'{path}: {name} has NaN or Inf values; the training '
                'diverged or the file is damaged')


def _some(what: str, keys: list[str]) -> str:
    if not keys:
        return ''
    more = f' and {len(keys) - 8} more' if len(keys) > 8 else ''
    return f'\n  {what} ({len(keys)}): {"; ".join(keys[:8])}{more}'


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
