# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .search_scales import SearchScales

__all__ = ['SearchScales']
