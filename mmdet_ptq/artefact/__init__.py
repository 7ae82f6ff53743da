# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The saved quantized model."""

from .artefact import (
    is_artefact,
    load_artefact,
    save_artefact,
    saved_meta,
    settings_of,
)
from .meta import decode_meta, encode_meta
from .quantizable import as_float, as_quantizable

__all__ = [
    'as_float',
    'as_quantizable',
    'decode_meta',
    'encode_meta',
    'is_artefact',
    'load_artefact',
    'save_artefact',
    'saved_meta',
    'settings_of',
]
