# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One real forward → :class:`~mmdet_ptq.structures.LayerGraph`."""

from .assemble import assemble, survey, trace
from .record import Trace
from .scalings import finder

__all__ = ['Trace', 'assemble', 'finder', 'survey', 'trace']
