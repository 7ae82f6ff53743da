# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The saved quantized model."""

from .artefact import is_artefact, load_artefact, save_artefact

__all__ = ['is_artefact', 'load_artefact', 'save_artefact']
