# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The one place where the version is written; ``setup.py`` reads it."""

__version__ = '0.1.0'
