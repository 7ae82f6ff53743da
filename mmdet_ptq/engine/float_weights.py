# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Float weights of a checkpoint into a detector, strictly."""

import logging
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import CheckpointError, NumericError

_MAY_MISS = re.compile(r'num_batches_tracked$|relative_position_index$')
# what MMDetection calls the losses of a head
_OF_LOSS = re.compile(r'(^|\.)loss(_\w+)?\.')


def load_float_weights(
    model: nn.Module, checkpoint: dict, path: str | Path
) -> None:
    """Copies float weights into a model, strictly.

    Buffers of losses may be missing: no prediction reads them.

    Args:
        model (nn.Module): As its config builds it.
        checkpoint (dict): With ``state_dict``, or one itself.
        path (str | Path): Where it came from, for messages.

    Raises:
        CheckpointError: If keys are missing or shapes differ; the message
            lists them.
        NumericError: If a weight is NaN or Inf; names the layer.
    """
    state = _state_of(checkpoint, path)
    own = model.state_dict()
    shapes = [
        f'{k}: {tuple(v.shape)} in the file, {tuple(own[k].shape)} in the '
        'model'
        for k, v in state.items()
        if k in own and own[k].shape != v.shape and own[k].numel()
    ]
    keys = _load(model, own, state, bool(shapes), path)
    missing = [
        k
        for k in keys.missing_keys
        if not _MAY_MISS.search(k) and k not in state
    ]
    buffers = {name for name, _ in model.named_buffers()}
    of_loss = [k for k in missing if k in buffers and _OF_LOSS.search(k)]
    missing = [k for k in missing if k not in of_loss]
    unexpected = list(keys.unexpected_keys)
    if shapes or missing:
        raise CheckpointError(
            f'{path} is of another architecture than the config.'
            + _some('missing', missing)
            + _some('unexpected', unexpected)
            + _some('other shape', shapes)
            + '\n  '
            + _advice(missing, list(state))
        )
    _note(path, 'not used by this model', unexpected)
    _note(path, 'missing, of losses, not used in a prediction', of_loss)
    for name, value in own.items():
        if not torch.isfinite(value).all():
            raise NumericError(
                f'{path}: {name} has NaN or Inf values; the training '
                'diverged or the file is damaged'
            )


def _state_of(checkpoint: dict, path: str | Path) -> dict[str, Tensor]:
    state: Any = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict):
        raise CheckpointError(
            f"the 'state_dict' of {path} is a "
            f'{type(state).__name__}, not a dict'
        )
    return OrderedDict(
        (re.sub(r'^module\.', '', k), v)
        for k, v in state.items()
        if isinstance(k, str) and isinstance(v, Tensor)
    )


def _load(
    model: nn.Module,
    own: dict[str, Tensor],
    state: dict[str, Tensor],
    other_shapes: bool,
    path: str | Path,
) -> Any:
    """Loads what fits; gives missing and unexpected keys."""
    if other_shapes:
        # a tensor of another shape ends it, so it reports names only
        state = {
            k: v
            for k, v in state.items()
            if k not in own or own[k].shape == v.shape
        }
    try:
        return model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f'{path} does not fit this model: {error}'
        ) from error


def _advice(missing: list[str], found: list[str]) -> str:
    """How to go on."""
    prefixes = _prefixes(missing, found)
    if not prefixes:
        return 'Use the config that the checkpoint was trained with.'
    names = ' and '.join(map(repr, prefixes))
    return (
        f'All that is missing is there with names that begin with {names}: '
        'the file was saved from a model with the detector inside. Use the '
        'config that it was trained with, or keep the detector alone, e.g. '
        f'p = {prefixes[0]!r}; torch.save({{k[len(p):]: v for k, v in '
        "torch.load(FILE)['state_dict'].items() if k.startswith(p)}, NEW)"
    )


def _prefixes(missing: list[str], found: list[str]) -> list[str]:
    """What names all missing keys if it is put before them."""
    if not missing:
        return []
    first = missing[0]
    before = [k[: -len(first)] for k in found if k.endswith(first)]
    there = set(found)
    return [p for p in before if all(p + k in there for k in missing)]


def _note(path: str | Path, what: str, keys: list[str]) -> None:
    if keys:
        print_log(f'{path}:{_some(what, keys)}', 'current', logging.WARNING)


def _some(what: str, keys: list[str]) -> str:
    if not keys:
        return ''
    more = f' and {len(keys) - 8} more' if len(keys) > 8 else ''
    return f'\n  {what} ({len(keys)}): {"; ".join(keys[:8])}{more}'
