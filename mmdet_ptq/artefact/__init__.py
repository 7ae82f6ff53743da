# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The saved quantized model."""

from .artefact import is_artefact, load_artefact, save_artefact
from .packing import pack, unpack

__all__ = ['is_artefact', 'load_artefact', 'pack', 'save_artefact', 'unpack']
