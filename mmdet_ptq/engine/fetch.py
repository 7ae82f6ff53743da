# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Checkpoints that are named by a URL or by a config of the model zoo."""

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hub import get_config

from ..errors import CheckpointError

SCHEMES = ('http', 'https', 'file')


def local_checkpoint(name: str | Path) -> Path:
    """Path of a checkpoint on this machine, downloaded if it has to be.

    Args:
        name (str | Path): A path, a URL (``http``, ``https`` or ``file``),
            or ``mmdet::...`` for the weights that MMDetection's model zoo
            has for a config. Downloads stay in the cache of torch.hub; those
            whose name has a hash where MMEngine puts them too, others in a
            folder for each URL.

    Returns:
        Path: Of the file; a path that is given need not exist.

    Raises:
        CheckpointError: If it cannot be had.
    """
    text = str(name)
    if '::' in text and '://' not in text:
        text = _zoo_weights(text)
    if '://' not in text:
        return Path(text).expanduser()
    try:
        url = urlparse(text)
    except ValueError as error:
        raise CheckpointError(
            f'checkpoint {text} is no URL: {error}; mend it, or give a path'
        ) from error
    if url.scheme not in SCHEMES:
        raise CheckpointError(
            f'checkpoint {text}: {url.scheme}:// is not known; allowed are a '
            f'path, {", ".join(f"{s}://" for s in SCHEMES)} and mmdet::...'
        )
    if url.scheme == 'file':
        return Path(unquote(url.path))
    cached = _place(text, Path(url.path).name)
    # one process of each machine; if it fails, all of them end
    mine = get_rank() == 0 or os.environ.get('LOCAL_RANK') == '0'
    errors = all_gather_object(_download(text, cached) if mine else '')
    for error in filter(None, errors):
        raise CheckpointError(
            f'cannot download {text} to {cached}: {error}. Download it by '
            'hand and give its path'
        )
    return cached


def _place(url: str, name: str) -> Path:
    """Where a download is kept; no other URL has this place."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    # a hash has a letter, other than a date or a number of steps
    if re.search(r'-(?=\d*[a-f])[0-9a-f]{8,}\.\w+$', name):
        return folder / name  # it tells the content
    known = hashlib.sha256(url.encode(errors='replace')).hexdigest()
    return folder / known[:16] / name


def _download(url: str, path: Path) -> str:
    """Why it could not be downloaded; nothing if it is there."""
    if path.is_file():
        return ''
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    # all that urllib raises
    except (OSError, ValueError, HTTPException) as error:
        return f'{type(error).__name__}: {error}'
    return ''


def _zoo_weights(name: str) -> str:
    """URL of the weights that belong to ``package::config``."""
    try:
        found = get_config(name, pretrained=True).model_path
    except Exception as error:
        # whatever a missing package, config or metafile raises
        raise CheckpointError(
            f'checkpoint {name}: the model zoo has no weights for it '
            f'({type(error).__name__}: {error}). Give the path of a .pth file'
        ) from error
    return str(found)
