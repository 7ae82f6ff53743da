# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .artefact import (
    is_artefact,
    load_artefact,
    plan_of,
    plan_to_dict,
    save_artefact,
)
from .attach import attach
from .packing import pack, unpack

__all__ = [
    'attach',
    'is_artefact',
    'load_artefact',
    'pack',
    'plan_of',
    'plan_to_dict',
    'save_artefact',
    'unpack',
]
