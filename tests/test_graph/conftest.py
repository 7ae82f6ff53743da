# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from graph_kit import kit

__all__ = ['kit']
