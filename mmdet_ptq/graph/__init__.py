# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One real forward → :class:`~mmdet_ptq.structures.LayerGraph`."""

from .assemble import survey
from .fold import fold_batch_norms, restore_folds

__all__ = ['fold_batch_norms', 'restore_folds', 'survey']
